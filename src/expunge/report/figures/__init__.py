"""Figures as pure functions: numbers in, an SVG string and its table out. Colours come from the page's style sheet."""
