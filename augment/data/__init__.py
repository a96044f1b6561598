"""M-BEIR files: queries, candidate pools, qrels, instructions, and the layout of a data root.

Tolerant where published data is loose (missing keys, null, ``text,image``, positives as objects,
a byte-order mark), strict elsewhere: every error names file and line. The format is described in
``docs/formats.md``; it is that of TIGER-Lab/M-BEIR as read by UniIR (2311.17136).
"""

from augment.data.records import (
    derive_task,
    grades_of,
    read_candidates,
    read_qrels,
    read_queries,
    write_candidates,
    write_qrels,
    write_queries,
)
from augment.data.root import (
    DataFile,
    DataRoot,
    InstructionRow,
    Instructions,
    TextRule,
    format_text,
    read_instructions,
    write_instructions,
)

__all__ = [
    "DataFile",
    "DataRoot",
    "InstructionRow",
    "Instructions",
    "TextRule",
    "derive_task",
    "format_text",
    "grades_of",
    "read_candidates",
    "read_instructions",
    "read_qrels",
    "read_queries",
    "write_candidates",
    "write_instructions",
    "write_qrels",
    "write_queries",
]
