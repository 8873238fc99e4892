"""Many runs of one recipe: a search space, a goal, trials that are ordinary runs, and a journal they share."""
