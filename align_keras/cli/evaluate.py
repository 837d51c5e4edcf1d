"""`align-keras evaluate`: one sub-command for each evaluation."""

import json


def add_arguments(parser):
    """Declare the evaluations and their options."""
    evaluations = parser.add_subparsers(
        dest="evaluation", metavar="EVALUATION", required=True
    )
    _add_retrieval(evaluations)
    _add_zero_shot(evaluations)
    _add_knn(evaluations)
    _add_linear_probe(evaluations)
    _add_cxc(evaluations)
    _add_words(evaluations)
    _add_all(evaluations)
    _add_compare(evaluations)


def run(args):
    """Run the chosen evaluation and print its result."""
    args.evaluate(args)


# === Options ===


def _add(evaluations, name, text, evaluate):
    parser = evaluations.add_parser(name, help=text, description=text)
    parser.set_defaults(evaluate=evaluate)
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object"
    )
    return parser


def _add_model(parser, batch=True):
    parser.add_argument(
        "--model",
        required=True,
        metavar="MODEL",
        help="preset directory or handle, SavedModel, or a preset of "
        "KerasHub's CLIP or SigLIP",
    )
    if batch:
        parser.add_argument(
            "--batch-size",
            type=int,
            default=64,
            metavar="N",
            help="pictures in one call of the network (default: %(default)s)",
        )
        parser.add_argument(
            "--cache",
            metavar="DIR",
            help="keep vectors here, and go on from them when interrupted",
        )
    _add_samples(parser)
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="write the result as JSON, and what `compare` needs beside it",
    )


def _add_samples(parser):
    parser.add_argument(
        "--bootstrap",
        type=int,
        default=1000,
        metavar="N",
        help="resamples of the intervals (default: %(default)s)",
    )


def _add_depths(parser, default):
    parser.add_argument(
        "--k",
        type=int,
        nargs="+",
        default=default,
        metavar="K",
        help=f"depths (default: {' '.join(map(str, default))})",
    )


def _add_retrieval(evaluations):
    parser = _add(
        evaluations,
        "retrieval",
        "find the captions of pictures, and the picture of a caption",
        _retrieval,
    )
    _add_model(parser)
    parser.add_argument(
        "--data",
        metavar="GLOB",
        help="TFRecord files that `align-keras pack` or img2dataset wrote; "
        "with --captions, the folder of the pictures",
    )
    parser.add_argument(
        "--captions",
        metavar="FILE",
        help="caption file, such as dataset_coco.json of Karpathy's splits",
    )
    parser.add_argument(
        "--split",
        help="splits of the caption file or of TFDS (default: test)",
    )
    parser.add_argument(
        "--captions-per-image",
        type=int,
        default=5,
        metavar="N",
        help="take the first N of a caption file (default: %(default)s)",
    )
    parser.add_argument(
        "--folds",
        type=int,
        default=1,
        metavar="N",
        help="search N equal parts by themselves; 5 for MSCOCO 1K",
    )
    _add_tfds(parser, "coco_captions")
    parser.add_argument("--name", help="what to call the data set")
    _add_depths(parser, [1, 5, 10])


def _add_tfds(parser, example):
    parser.add_argument(
        "--tfds",
        metavar="NAME",
        help=f"a TFDS data set, such as {example}, in the place of files",
    )
    parser.add_argument(
        "--tfds-directory", metavar="DIR", help="where TFDS keeps its data"
    )


def _add_labelled(parser, parts):
    for part in parts:
        parser.add_argument(
            f"--{part}",
            required=part != "validation",
            metavar="FOLDER",
            help="one folder of pictures for each class; with --tfds, a split",
        )
    _add_tfds(parser, "oxford_flowers102")


def _add_zero_shot(evaluations):
    parser = _add(
        evaluations,
        "zero-shot",
        "classify pictures by the names of the classes",
        _zero_shot,
    )
    _add_model(parser)
    _add_labelled(parser, ["data"])
    parser.add_argument(
        "--classes",
        metavar="FILE",
        help="JSON with the names of the classes, and templates if wanted",
    )
    parser.add_argument(
        "--all-classes",
        action="store_true",
        help="compete with all named classes, not with those of the data",
    )
    parser.add_argument(
        "--ensemble",
        choices=["normalized", "plain"],
        default="normalized",
        help="whether prompts are normalised before their mean",
    )
    parser.add_argument("--name", help="what to call the data set")
    _add_depths(parser, [1, 5])


def _add_knn(evaluations):
    parser = _add(
        evaluations,
        "knn",
        "find the label of a picture among its nearest training pictures",
        _knn,
    )
    _add_model(parser)
    _add_labelled(parser, ["train", "data"])
    parser.add_argument("--name", help="what to call the data set")
    _add_depths(parser, [1])


def _add_linear_probe(evaluations):
    parser = _add(
        evaluations,
        "linear-probe",
        "train a linear classifier on frozen vectors",
        _linear_probe,
    )
    _add_model(parser)
    _add_labelled(parser, ["train", "data", "validation"])
    parser.add_argument(
        "--solver",
        choices=["lbfgs", "sgd"],
        default="lbfgs",
        help="lbfgs with a sweep of the weight decay, or the paper's SGD",
    )
    parser.add_argument("--name", help="what to call the data set")


def _add_cxc(evaluations):
    parser = _add(
        evaluations,
        "cxc",
        "Crisscrossed Captions: retrieval and correlation with ratings",
        _cxc,
    )
    _add_model(parser)
    parser.add_argument(
        "--data",
        required=True,
        metavar="DIR",
        help="the rating files sts_test.csv, sis_test.csv and sits_test.csv",
    )
    parser.add_argument(
        "--captions", required=True, metavar="FILE", help="dataset_coco.json"
    )
    parser.add_argument(
        "--images", required=True, metavar="DIR", help="pictures of MSCOCO"
    )
    parser.add_argument("--split", choices=["val", "test"], default="test")
    for task, default in (("sts", 3.0), ("sis", 2.5), ("sits", 3.0)):
        parser.add_argument(
            f"--{task}-threshold",
            type=float,
            default=default,
            metavar="RATING",
            help="pairs rated so count as matching (default: %(default)s)",
        )
    parser.add_argument(
        "--rated-only",
        action="store_true",
        help="an original caption matches only where it was rated so",
    )
    parser.add_argument(
        "--no-co-captions",
        action="store_true",
        help="captions of one image match only where they were rated so",
    )
    parser.add_argument(
        "--keep-empty",
        action="store_true",
        help="count queries without an answer as missed",
    )
    parser.add_argument(
        "--repeated",
        choices=["keep", "mean"],
        default="keep",
        help="what to do with two ratings of one pair (default: %(default)s)",
    )
    parser.add_argument(
        "--caption-queries",
        action="store_true",
        help="captions, not images, are the queries of the SITS correlation",
    )
    parser.add_argument(
        "--with-replacement",
        action="store_true",
        help="a sample of the correlation may draw a query twice",
    )
    _add_depths(parser, [1, 5, 10])


def _add_words(evaluations):
    parser = _add(
        evaluations,
        "words",
        "compare the similarity of words with human judgement",
        _words,
    )
    _add_model(parser, batch=False)
    parser.add_argument(
        "--data", required=True, metavar="FILE", help="SimLex-999.txt"
    )


def _add_all(evaluations):
    parser = _add(
        evaluations,
        "all",
        "run every evaluation whose data are there, and write a report",
        _all,
    )
    parser.add_argument(
        "--model",
        required=True,
        action="append",
        metavar="MODEL",
        help="a model; give the option again to measure others beside it",
    )
    parser.add_argument(
        "--data-root",
        required=True,
        metavar="DIR",
        help="directory in the layout of docs/evaluation.md",
    )
    parser.add_argument(
        "--output",
        default="evaluation",
        metavar="DIR",
        help="results, vectors and report.md (default: %(default)s)",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        default=64,
        metavar="N",
        help="pictures in one call of the network (default: %(default)s)",
    )
    _add_samples(parser)


def _add_compare(evaluations):
    parser = _add(
        evaluations,
        "compare",
        "tell whether two models differ, from their results",
        _compare,
    )
    parser.add_argument("first", metavar="A.json")
    parser.add_argument("second", metavar="B.json")
    _add_samples(parser)


# === Runs ===


def _show(args, result):
    from align_keras.evaluation.report import describe

    if args.output:
        result.save(args.output)
    print(result.to_json() if args.json else describe(result))


def _common(args):
    return {
        "batch_size": args.batch_size,
        "cache": args.cache,
        "samples": args.bootstrap,
    }


def _embedder(args):
    from align_keras.evaluation import load_embedder

    return load_embedder(args.model)


def _retrieval(args):
    from align_keras.evaluation import datasets
    from align_keras.evaluation.runner import measure_retrieval

    if (args.tfds is None) == (args.data is None):
        raise ValueError("Give either `--data` or `--tfds`.")
    if args.tfds:
        data = datasets.tfds_captions(
            args.tfds,
            args.split or "test",
            args.tfds_directory,
            args.captions_per_image,
        )
    elif args.captions:
        split = args.split
        if split is None and args.captions.endswith(".json"):
            split = "test"
        data = datasets.karpathy(
            args.captions, args.data, split, args.name, args.captions_per_image
        )
    else:
        data = datasets.records(args.data, args.name)
    result = measure_retrieval(
        _embedder(args), data, ks=args.k, folds=args.folds, **_common(args)
    )
    _show(args, result)


def _labelled(args, part, name=None):
    from align_keras.evaluation import datasets

    value = getattr(args, part)
    if value is None:
        return None
    if args.tfds:
        return datasets.tfds_labels(args.tfds, value, args.tfds_directory)
    return datasets.class_folders(value, name or value.strip("/"))


def _zero_shot(args):
    from align_keras.evaluation.labelled_runner import measure_zero_shot

    data = _labelled(args, "data", args.name)
    result = measure_zero_shot(
        _embedder(args),
        data,
        args.classes,
        ensemble=args.ensemble,
        all_classes=args.all_classes,
        ks=args.k,
        **_common(args),
    )
    _show(args, result)


def _knn(args):
    from align_keras.evaluation.labelled_runner import measure_knn

    train, test = _labelled(args, "train"), _labelled(args, "data", args.name)
    result = measure_knn(
        _embedder(args), train, test, ks=args.k, **_common(args)
    )
    _show(args, result)


def _linear_probe(args):
    from align_keras.evaluation.labelled_runner import measure_linear_probe

    result = measure_linear_probe(
        _embedder(args),
        _labelled(args, "train"),
        _labelled(args, "data", args.name),
        _labelled(args, "validation"),
        solver=args.solver,
        **_common(args),
    )
    _show(args, result)


def _cxc(args):
    from align_keras.evaluation.cxc_runner import measure_cxc

    columns = {"sits": (0,)} if args.caption_queries else {}
    result = measure_cxc(
        _embedder(args),
        args.data,
        args.captions,
        args.images,
        args.split,
        ks=args.k,
        drop_empty=not args.keep_empty,
        positives={
            "thresholds": {
                task: getattr(args, f"{task}_threshold")
                for task in ("sts", "sis", "sits")
            },
            "originals": not args.rated_only,
            "co_captions": not args.no_co_captions,
            "repeated": args.repeated,
        },
        correlation={
            "query_columns": columns,
            "replace": args.with_replacement,
            "repeated": args.repeated,
        },
        **_common(args),
    )
    _show(args, result)


def _words(args):
    from align_keras.evaluation.runner import measure_words

    result = measure_words(_embedder(args), args.data, samples=args.bootstrap)
    _show(args, result)


def _all(args):
    from align_keras.evaluation.suite import evaluate_all

    found = evaluate_all(
        args.model,
        args.data_root,
        args.output,
        args.batch_size,
        samples=args.bootstrap,
        say=_silent if args.json else print,
    )
    if args.json:
        print(json.dumps({**found, "results": _plain(found["results"])}))


def _plain(results):
    return [json.loads(result.to_json()) for result in results]


def _silent(words):
    pass


def _compare(args):
    from align_keras.evaluation.compare import compare_results
    from align_keras.evaluation.report import describe_comparison

    found = compare_results(args.first, args.second, args.bootstrap)
    print(json.dumps(found) if args.json else describe_comparison(found))
