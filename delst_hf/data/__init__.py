"""From slides on disk to a dataset folder that `datasets.load_dataset` opens.

Order of reading: `schema` (the columns), `slide` (one section in memory), `images` (files and arrays to RGB), `readers`
(one file per source format), `toy` (synthetic slides), `dataset` (slides to a folder).
"""
