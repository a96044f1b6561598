"""Flagland's instructions, four wordings a task as in M-BEIR's table."""

from __future__ import annotations

#: M-BEIR task code -> what the query asks to be found.
INSTRUCTIONS: dict[int, tuple[str, ...]] = {
    0: (
        "Find the picture of the flag described.",
        "Which flag matches this description?",
        "Retrieve the flag that fits the words.",
        "Show the flag these words describe.",
    ),
    1: (
        "Find the passage that answers the question.",
        "Retrieve the text with the answer.",
        "Which passage tells this about the country?",
        "Give the article that answers this.",
    ),
    2: (
        "Find the entry, with its flag, that answers the question.",
        "Which illustrated entry has the answer?",
        "Retrieve the entry and flag of the country asked about.",
        "Give the illustrated article that answers this.",
    ),
    3: (
        "Find the description of this flag.",
        "Which text describes the flag shown?",
        "Retrieve the words that fit this flag.",
        "Give the description that matches the picture.",
    ),
    4: (
        "Find the drawing of the flag in this photo.",
        "Which flag is photographed here?",
        "Retrieve the same flag as a drawing.",
        "Match this photo with its flag.",
    ),
    6: (
        "Find the passage that answers the question about the flag shown.",
        "Which text has the answer for this flag's country?",
        "Retrieve the article on the country of this flag that answers the question.",
        "Give the passage that tells this about the pictured flag.",
    ),
    7: (
        "Find the flag that results from the change.",
        "Which flag is like this one but for the change asked for?",
        "Retrieve the flag after the modification.",
        "Show the flag the request describes.",
    ),
    8: (
        "Find the entry, with its flag, that answers the question about this photo.",
        "Which illustrated entry belongs to the flag photographed?",
        "Retrieve the entry and flag for the question about this picture.",
        "Give the illustrated article on the country of this flag.",
    ),
}
