import json

from align_keras.cli.options import InputPath
from align_keras.io.hub_handles import hub_repository


def add_arguments(parser):
    parser.add_argument(
        "directory",
        type=InputPath,
        metavar="DIR",
        help="working directory of a run, or preset directory",
    )
    parser.add_argument("handle", metavar="HANDLE", help="hf://user/name")
    parser.add_argument(
        "--license",
        metavar="ID",
        help="the hub's name for a licence, such as apache-2.0",
    )
    parser.add_argument(
        "--language",
        action="append",
        metavar="CODE",
        help="language of the model's texts, such as en; may be repeated",
    )
    parser.add_argument(
        "--private", action="store_true", help="make a private repository"
    )
    parser.add_argument(
        "--json", action="store_true", help="print the result as JSON"
    )


def run(options):
    hub_repository(options.handle)
    from align_keras.serving import upload

    address = upload(
        options.directory,
        options.handle,
        license=options.license,
        language=options.language,
        private=options.private,
    )
    if options.json:
        print(json.dumps({"commit": address}))
    else:
        print(f"Published as {options.handle}: {address}")
