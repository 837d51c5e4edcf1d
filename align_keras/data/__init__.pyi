from .captions import read_captions as read_captions
from .packing import pack as pack
from .pipeline import load_dataset as load_dataset
from .pipeline import records_of_step as records_of_step
from .record_files import RecordFiles as RecordFiles
from .record_files import open_records as open_records
