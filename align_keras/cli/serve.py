"""`align-keras serve`: serve a web page that searches an index."""

from align_keras.cli.options import InputPath
from align_keras.cli.options import ModelPath
from align_keras.cli.options import add_qdrant
from align_keras.cli.options import add_verify
from align_keras.cli.options import bounded


def add_arguments(parser):
    """Declare the options."""
    parser.add_argument(
        "index",
        type=InputPath,
        metavar="INDEX",
        help="directory that `align-keras index` wrote",
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on (default: %(default)s, this machine only)",
    )
    parser.add_argument(
        "--port",
        type=bounded(int, least=0, most=65535),
        default=8080,
        help="default: %(default)s",
    )
    parser.add_argument(
        "--open", action="store_true", help="open the page in a browser"
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="host name under which others reach the page; may be repeated",
    )
    parser.add_argument(
        "--model",
        type=ModelPath,
        metavar="DIR",
        help="another copy of the index's model; a different model is refused",
    )
    add_qdrant(parser)
    add_verify(parser)
    parser.add_argument(
        "--max-upload-mib",
        type=bounded(float, above=0),
        default=20,
        metavar="N",
        help="maximum size of a dropped image in MiB (default: %(default)s)",
    )
    parser.add_argument(
        "--max-pixels",
        type=bounded(int, least=1),
        default=50_000_000,
        metavar="N",
        help="maximum number of pixels of a dropped image (default: "
        "%(default)s)",
    )
    parser.add_argument(
        "--rate",
        type=bounded(float, above=0),
        default=20,
        metavar="N",
        help="maximum number of requests per second from one address (default: "
        "%(default)s)",
    )


def run(args):
    """Serve the page until interrupted."""
    from align_keras.search.web.run_server import Limits
    from align_keras.search.web.run_server import serve

    upload_bytes = int(args.max_upload_mib * 2**20)
    limits = Limits(
        upload_bytes=upload_bytes,
        held_bytes=max(Limits.held_bytes, upload_bytes),
        max_pixels=args.max_pixels,
        rate=args.rate,
        burst=max(1, 3 * args.rate),
    )
    serve(
        args.index,
        args.host,
        args.port,
        args.model,
        limits,
        args.allow_host,
        args.open,
        args.qdrant,
        args.verify,
    )
