"""M-BEIR files: queries, candidate pools, qrels, instructions, and the layout of a data root.

Tolerant where published data is loose (missing keys, null, ``text,image``, positives as objects,
a byte-order mark), strict elsewhere: every error names file and line. The format is described in
``docs/formats.md``; it is that of TIGER-Lab/M-BEIR as read by UniIR (2311.17136).
"""

from augment.data.records import grades_of as grades_of
from augment.data.records import read_candidates as read_candidates
from augment.data.records import read_qrels as read_qrels
from augment.data.records import read_queries as read_queries
from augment.data.records import write_candidates as write_candidates
from augment.data.records import write_qrels as write_qrels
from augment.data.records import write_queries as write_queries
from augment.data.root import DataRoot as DataRoot
from augment.data.root import InstructionRow as InstructionRow
from augment.data.root import Instructions as Instructions
from augment.data.root import TextRule as TextRule
from augment.data.root import format_text as format_text
from augment.data.root import open_instructions as open_instructions
from augment.data.root import write_instructions as write_instructions
