"""Where expunge meets other tools of its users: the Hugging Face Hub and `transformers.Trainer`."""
