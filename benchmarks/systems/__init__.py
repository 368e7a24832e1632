"""The systems of the papers, and others that decide: their data, what is compared, and how.

Each file of a system or a family of systems holds how frames are made or read, how models are
trained on them, and what physics says the answer is; `command` runs them all.
"""
