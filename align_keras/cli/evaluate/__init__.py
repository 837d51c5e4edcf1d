"""`align-keras evaluate`, with one module per evaluation."""

from align_keras.cli.options import add_commands

EVALUATIONS = {
    "retrieval": "find the captions of images, and the image of a caption",
    "multilingual": "retrieval in many languages: Crossmodal-3600, Multi30k",
    "zero-shot": "classify images by the names of the classes",
    "knn": "find the label of an image among its nearest training images",
    "linear-probe": "train a linear classifier on frozen vectors",
    "cxc": "Crisscrossed Captions: retrieval and correlation with ratings",
    "composition": "tell apart captions of nearly the same words: Winoground, "
    "SugarCrepe, ARO",
    "words": "compare the similarity of words with human judgement",
    "finetune": "fine-tune a classifier, head first and then all",
    "vtab": "fine-tune on VTAB-1k: a sweep for each of its 19 tasks",
    "all": "run every evaluation that has data, and write a report",
    "compare": "tell from their results whether two models differ",
}


def add_arguments(parser):
    """Declare the evaluations and their options."""
    parsers = parser.add_subparsers(
        dest="evaluation", metavar="EVALUATION", required=True
    )
    add_commands(parsers, __name__, EVALUATIONS)
