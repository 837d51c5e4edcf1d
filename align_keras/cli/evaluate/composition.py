"""`align-keras evaluate composition`: Winoground, SugarCrepe and ARO."""

from align_keras.cli.evaluate import shared_options

TESTS = ("winoground", "sugarcrepe", "vg-relation", "vg-attribution")


def add_arguments(parser):
    """Declare the options."""
    shared_options.add_published(
        parser,
        TESTS,
        data="the published files: examples.jsonl, add_att.json and others, "
        "or visual_genome_relation.json",
        images="MSCOCO's val2017 for sugarcrepe; for the others, by default "
        "`images` in --data",
    )


def run(args):
    """Measure composition and print the result."""
    if args.test == "winoground" and args.images:
        shared_options.refuse(
            "images", "is not for winoground: its images are in `--data`"
        )
    if args.test == "sugarcrepe" and not args.images:
        raise ValueError(
            "sugarcrepe needs `--images`, the folder of MSCOCO's val2017."
        )
    from align_keras.evaluation import composition

    options = {"allow_outside": args.allow_outside}
    if args.name:
        options["name"] = args.name
    if args.test == "winoground":
        data = composition.winoground(args.data, **options)
    elif args.test == "sugarcrepe":
        data = composition.sugar_crepe(args.data, args.images, **options)
    else:
        kind = args.test.removeprefix("vg-")
        data = composition.visual_genome(
            args.data, kind, args.images, **options
        )
    result = composition.measure_composition(
        shared_options.embedder(args),
        data,
        **shared_options.embedding_options(args),
    )
    shared_options.show(args, result)
