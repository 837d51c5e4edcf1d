import io
import tarfile


def write_archive(path, files, mode="w"):
    """Write a tar.

    Args:
        path: string or `pathlib.Path`.
        files: dict, or pairs in which a name may come again, from names to
            bytes; a string is a hard link to that name.
        mode: string. Of `tarfile.open`. Defaults to `"w"`.
    """
    pairs = files.items() if isinstance(files, dict) else files
    with tarfile.open(path, mode) as tar:
        for name, contents in pairs:
            member = tarfile.TarInfo(name)
            if isinstance(contents, str):
                member.type, member.linkname = tarfile.LNKTYPE, contents
                tar.addfile(member)
                continue
            member.size = len(contents)
            tar.addfile(member, io.BytesIO(contents))
