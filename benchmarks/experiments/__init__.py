"""Experiments on retrievers and texts, on any M-BEIR root: ``python -m benchmarks.experiments``.

An experiment is a table of *arms*: a retriever (trained on some text, packaged, or lexical) and the
text it is shown in the test. Arms become *steps* (texts, trainings, tests) whose folders are named
by what goes into them, so that arms, experiments and interrupted runs share whatever is the same.
"""
