"""Two passes and what is read off them: traces, generations, suites."""
