"""Search by inner product: one contract; exact, approximate and distributed indexes.

Scores are computed anew in double precision for the best candidates, rounded to six decimals, and
ties go by id (descending, trec_eval's rule). Equal vectors therefore rank the same on every
machine, whatever device, block size or number of workers found them.
"""

from retrievers.vectors.index.approximate import FaissIndex
from retrievers.vectors.index.base import Found, Index, VectorIndex, VectorSource
from retrievers.vectors.index.choose import make_index
from retrievers.vectors.index.exact import MatrixIndex
from retrievers.vectors.index.ids import Ids
from retrievers.vectors.index.recall import Recall, measure_recall

__all__ = [
    "FaissIndex",
    "Found",
    "Ids",
    "Index",
    "MatrixIndex",
    "Recall",
    "VectorIndex",
    "VectorSource",
    "make_index",
    "measure_recall",
]
