import json


def add_arguments(parser):
    parser.add_argument(
        "--json", action="store_true", help="print JSON instead of tables"
    )


def run(options):
    from align_keras.models.shipped_presets import list_presets
    from align_keras.models.shipped_presets import list_pretrained_presets

    table, pretrained = list_presets(), list_pretrained_presets()
    if options.json:
        print(json.dumps({**table, **pretrained}, indent=2))
        return
    print(f"{'preset':<26}{'parameters':>14}{'embedding':>11}{'GFLOPs':>10}")
    for name, row in table.items():
        print(
            f"{name:<26}{row['parameters'] / 1e6:>12.1f} M"
            f"{row['embedding_dim']:>11}{row['gflops']:>10.1f}"
        )
    print(
        "Architectures with fresh weights. Parameters: trainable, with a "
        "vocabulary of 100,000\ntokens. GFLOPs: forward pass of one pair, with "
        "289x289 pixels and 64 tokens.\n"
    )
    print(
        f"{'with weights':<36}{'MB':>6}  where, licence, and what was measured"
    )
    for name, row in pretrained.items():
        results = "; ".join(f"{k} {v}" for k, v in row["results"].items())
        print(f"{name:<36}{row['megabytes']:>6}  {row['handle']}")
        print(f"{'':<44}{row['license']}")
        print(f"{'':<44}{results}")
    print(
        "Downloaded when first used. The results are those that their authors "
        "report, in %."
    )
