import json


def add_arguments(parser):
    parser.add_argument(
        "--json", action="store_true", help="print JSON instead of a table"
    )


def run(options):
    from align_keras.models.shipped_presets import list_presets

    table = list_presets()
    if options.json:
        print(json.dumps(table, indent=2))
        return
    print(f"{'preset':<26}{'parameters':>14}{'embedding':>11}{'GFLOPs':>10}")
    for name, row in table.items():
        print(
            f"{name:<26}{row['parameters'] / 1e6:>12.1f} M"
            f"{row['embedding_dim']:>11}{row['gflops']:>10.1f}"
        )
    print(
        "Parameters are trainable ones with a vocabulary of 100,000 tokens; "
        "GFLOPs of one pair\nforward at 289x289 pixels and 64 tokens. The "
        "presets are architectures without weights."
    )
