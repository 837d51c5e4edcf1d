from .latency import measure_latency as measure_latency
from .portable import export_quantized_towers as export_quantized_towers
from .portable import export_towers as export_towers
from .runtimes import open_tower as open_tower
from .saved_model import export_saved_model as export_saved_model
from .upload import upload as upload
