from .latency import measure_latency as measure_latency
from .portable import export_towers as export_towers
from .saved_model import export_saved_model as export_saved_model
from .upload import upload as upload
