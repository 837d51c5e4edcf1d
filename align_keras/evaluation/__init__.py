"""How good a model is: metrics on arrays, and what measures them on data.

Each subject has a file with its metrics, which are pure functions of arrays,
and with its `measure_…`, which reads data, embeds them and returns a `Result`.
"""

from align_keras.evaluation.ablation import ablate
from align_keras.evaluation.compare import compare_results
from align_keras.evaluation.cxc import measure_cxc
from align_keras.evaluation.datasets import DataSet
from align_keras.evaluation.finetune import measure_finetune
from align_keras.evaluation.knn import measure_knn
from align_keras.evaluation.linear_probe import measure_linear_probe
from align_keras.evaluation.ranks import best_positive_ranks
from align_keras.evaluation.results import Result
from align_keras.evaluation.retrieval import measure_retrieval
from align_keras.evaluation.retrieval import retrieval_chance
from align_keras.evaluation.retrieval import retrieval_metrics
from align_keras.evaluation.suite import measure_all
from align_keras.evaluation.vtab import measure_vtab
from align_keras.evaluation.words import measure_words
from align_keras.evaluation.zero_shot import measure_zero_shot

__all__ = [
    "DataSet",
    "Result",
    "ablate",
    "best_positive_ranks",
    "compare_results",
    "measure_all",
    "measure_cxc",
    "measure_finetune",
    "measure_knn",
    "measure_linear_probe",
    "measure_retrieval",
    "measure_vtab",
    "measure_words",
    "measure_zero_shot",
    "retrieval_chance",
    "retrieval_metrics",
]
