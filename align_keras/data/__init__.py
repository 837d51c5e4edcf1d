"""Training records: packing raw pairs, reading records, making batches."""

from align_keras.data.captions import read_captions
from align_keras.data.pack import pack
from align_keras.data.pipeline import load_dataset
from align_keras.data.pipeline import records_of_step
from align_keras.data.record_files import RecordFiles
from align_keras.data.record_files import open_records
from align_keras.data.records import skipped

__all__ = [
    "RecordFiles",
    "load_dataset",
    "open_records",
    "pack",
    "read_captions",
    "records_of_step",
    "skipped",
]
