"""Decodes one JPEG Lossless or 12-bit JPEG Extended codestream, from standard input to standard output.

GDCM is the only permissively licensed decoder of these here, and it calls ``abort`` on some malformed streams.
``codestream.py`` therefore runs this file as a program of its own,
``python isolated.py SYNTAX ROWS COLUMNS PRECISION MEMORY``, with the codestream's figures and the most bytes of address
space that it may take. Nothing but GDCM is imported, so that a start costs a tenth of a second.
"""

from __future__ import annotations

import resource
import sys

import gdcm  # type: ignore[import-untyped]  # publishes no types


def main(syntax: str, rows: int, columns: int, precision: int, memory: int) -> int:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold a patient's pixels
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    gdcm.Trace.WarningOff()
    gdcm.Trace.ErrorOff()

    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(sys.stdin.buffer.read())
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())

    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((columns, rows, 1))
    image.SetDataElement(element)
    kind = gdcm.PhotometricInterpretation.GetPIType("MONOCHROME2")
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(kind))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(syntax)))
    image.SetPixelFormat(gdcm.PixelFormat(1, 8 if precision <= 8 else 16, precision, precision - 1, 0))
    decoded = image.GetBuffer()
    if decoded is None:
        return 1
    # GDCM's binding hands bytes over as str.
    sys.stdout.buffer.write(decoded.encode("utf-8", "surrogateescape"))
    sys.stdout.buffer.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], *(int(argument) for argument in sys.argv[2:])))
