"""MMEB (VLM2Vec, 2410.05160; V2 2507.04590): files, candidate lists, categories of 78 data sets.

A data set of pictures is a folder of parquet files, or a ``.jsonl`` file, with a row a query::

    qry_text, qry_img_path       the query; "" is absent. Version 2 has its instruction in qry_inst
    tgt_text[], tgt_img_path[]   its own candidates, parallel lists; the first one is right.
                                 Version 2 has an instruction in tgt_inst

MMEB-train has ``qry``, ``qry_image_path``, ``pos_text``, ``pos_image_path``, ``neg_text`` and
``neg_image_path`` in files called ``original`` and ``diverse_instruction``: a list of one or two.

Every query is ranked against its own list. A candidate is its text and its picture together, so
that a list naming the right one twice does not punish finding the second; ties go by id, as
everywhere in this package (the authors' code takes whatever sorts first). A path may name the
folder of a video's frames (:func:`augment.data.images.frames`).

V2 adds 18 data sets of videos, with columns of their own (:mod:`augment.data.mmeb.videos`), and 24
of documents: folders ``queries``, ``corpus`` and ``qrels`` of parquet files, in which every page is
a candidate, its picture as in the published archive (``NAME/ID.png``), and judgements have grades.
The authors' code scores these by nDCG@5, the others by hit@1.
"""

from augment.data.mmeb.reading import PAGE as PAGE
from augment.data.mmeb.reading import read_subset as read_subset
from augment.data.mmeb.reading import reworded as reworded
from augment.data.mmeb.reading import subset_names as subset_names
from augment.data.mmeb.subsets import CATEGORIES as CATEGORIES
from augment.data.mmeb.subsets import IN_DISTRIBUTION as IN_DISTRIBUTION
from augment.data.mmeb.subsets import KNOWN as KNOWN
from augment.data.mmeb.subsets import PARTS as PARTS
from augment.data.mmeb.subsets import Subset as Subset
from augment.data.mmeb.subsets import Target as Target
