"""Training records: packing raw pairs, reading records, making batches."""

from align_keras.data.captions import read_captions
from align_keras.data.pack import pack
from align_keras.data.pipeline import load_dataset
from align_keras.data.pipeline import records_of_step
from align_keras.data.records import count_records
from align_keras.data.records import iterate_records
from align_keras.data.records import record_counts
from align_keras.data.records import skipped

__all__ = [
    "count_records",
    "iterate_records",
    "load_dataset",
    "pack",
    "read_captions",
    "record_counts",
    "records_of_step",
    "skipped",
]
