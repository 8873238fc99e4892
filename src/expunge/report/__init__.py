"""One self-contained HTML page of a run or of several, and the model card: what a person hands to someone else.

Nothing here imports torch: everything shown is read from run directories.
"""
