"""``stepwedge policy``: start a site policy, fit it on the site's own studies, approve it, show it."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepwedge.errors import StepwedgeError

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

_WIDTH = 160  # characters of a table that goes to no terminal
_DECIMALS = 4  # of probabilities in the table; the JSON has them all


def add(commands: Commands) -> None:
    """Add the group's parsers."""
    group = commands.add_parser(
        "policy",
        help="start, fit, approve and show a site policy",
        description="A site policy states what errors cost and how common findings are; thresholds follow from it.",
    ).add_subparsers(required=True, metavar="ACTION")

    def action(name: str, run: object, help_text: str, description: str | None = None) -> argparse.ArgumentParser:
        parser = group.add_parser(name, help=help_text, description=description or help_text)
        parser.set_defaults(run=run)
        return parser

    def with_package(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
        parser.add_argument(
            "--package", type=Path, required=required, metavar="DIR", help="folder of the model package"
        )

    init = action("init", _init, "write a commented policy file for a package, to be edited")
    with_package(init)
    init.add_argument("--out", type=Path, default=Path("policy.yaml"), metavar="FILE", help="default: policy.yaml")

    fit = action(
        "fit",
        _fit,
        "fit gate, baseline and workload cap on the site's own studies",
        "Runs the package on the site's own studies, fits the content gate and the tamper check on those that it "
        "accepts, and writes them and a baseline for the monitor beside the policy, which then names them by their "
        "digests. A policy that was approved has to be approved again. Patient IDs are only hashed in memory.",
    )
    fit.add_argument("policy", type=Path, metavar="FILE", help="the policy")
    with_package(fit)
    fit.add_argument(
        "--data", type=Path, nargs="+", required=True, metavar="PATH", help="DICOM or image files, or folders of them"
    )
    fit.add_argument(
        "--false-rejection",
        type=_share,
        default=0.01,
        metavar="SHARE",
        help="share of the site's proper images that the content gate may reject, and the tamper check flag, each "
        "(default: 0.01)",
    )
    fit.add_argument(
        "--cap",
        type=_share,
        metavar="SHARE",
        help="largest share of studies left to people for being uncertain, where the policy states no workload_cap",
    )
    fit.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")

    approve = action(
        "approve",
        _approve,
        "sign an approval of exactly this policy for exactly this package",
        "Shows the policy and adds a signed line to the log FILE.approvals.jsonl. Results are for clinical use only "
        "where the policy asks for it (clinical: true), the package is signed and made for it, and the service trusts "
        "both keys (setting trust.keys).",
    )
    approve.add_argument("policy", type=Path, metavar="FILE", help="the policy")
    with_package(approve, required=False)
    approve.add_argument("--key", type=Path, required=True, metavar="KEY", help="your private key (PEM)")
    approve.add_argument("--name", required=True, help='your name, as in "Dr Jane Doe"')
    approve.add_argument("--note", default="", help="what you want to have remembered")
    approve.add_argument("--revoke", action="store_true", help="take the newest approval back instead")

    show = action("show", _show, "show costs, the thresholds that follow, what was fitted, and who approved it")
    show.add_argument("policy", type=Path, metavar="FILE", help="the policy")
    with_package(show, required=False)
    show.add_argument("--config", type=Path, metavar="FILE", help="settings, for the keys that the site trusts")
    show.add_argument("--json", action="store_true", help="one JSON object")

    key = action("key", _key, "make a signing key and its public half, which goes into the setting trust.keys")
    key.add_argument("file", type=Path, metavar="FILE", help="where the private key is to lie, e.g. jane.pem")


def _init(options: argparse.Namespace) -> int:
    from stepwedge.manifest import load_package
    from stepwedge.package.site import write_draft

    write_draft(load_package(options.package), options.out)
    _say(f"{options.out}: written; edit every line that says EDIT, then: stepwedge policy show {options.out}")
    return 0


def _fit(options: argparse.Namespace) -> int:
    from stepwedge.commands.progress import Terminal
    from stepwedge.inference.engine import OnnxEngine
    from stepwedge.manifest import load_package
    from stepwedge.package.fit_policy import fit_policy
    from stepwedge.policy import approvals_file
    from stepwedge.predict import find_files

    missing = [path for path in options.data if not path.exists()]
    if missing:
        raise StepwedgeError(f"{missing[0]}: no such file or folder")
    package = load_package(options.package)
    files = list(dict.fromkeys(find_files(options.data)))
    with Terminal() as report:
        fit = fit_policy(
            options.policy,
            package,
            files,
            OnnxEngine(package, options.device),
            false_rejection=options.false_rejection,
            cap=options.cap,
            report=report,
        )
    fitted = fit.fitted
    _say(f"{options.policy}: fitted on {fitted.images} images of {fitted.studies} studies, {fitted.patients} patients")
    for text, count in fit.refused.items():
        _say(f"  left out: {count} × {text}")
    for name, deferral in fitted.deferrals.items():
        _say(
            f"  {name}: a deferral costs {deferral.deferral:g} (stated: {deferral.stated.deferral:g}), and "
            f"{deferral.deferred:.1%} of these studies are deferred"
        )
    if approvals_file(options.policy).exists():
        _say("  the policy has changed: approve it again before the service takes it")
    return 0


def _approve(options: argparse.Namespace) -> int:
    from stepwedge.manifest import load_package
    from stepwedge.package import site
    from stepwedge.policy import approvals_file, read_policy

    if options.revoke:
        line = site.revoke(options.policy, options.key, by=options.name, note=options.note)
        _say(f"{approvals_file(options.policy)}: {line.by} revoked the approval with the key {line.key}")
        return 0
    if options.package is None:
        raise StepwedgeError("name the package that the policy is approved for: --package DIR")
    package = load_package(options.package)
    _print(site.show(options.policy, package))
    line = site.approve(options.policy, package, options.key, by=options.name, note=options.note)
    _say(
        f"{approvals_file(options.policy)}: {line.by} approved {line.policy.name} {line.policy.version} for "
        f"{line.package.name} {line.package.version} with the key {line.key}"
    )
    for reason in site.still_demonstration(read_policy(options.policy)[0], package):
        _say(f"  results stay a demonstration: {reason}")
    return 0


def _show(options: argparse.Namespace) -> int:
    from stepwedge.manifest import load_package
    from stepwedge.package import site
    from stepwedge.settings import load_settings
    from stepwedge.signing import load_trust

    trust = load_trust(load_settings(options.config).trust.keys) if options.config else None
    package = load_package(options.package, trust) if options.package else None
    shown = site.show(options.policy, package, trust)
    if options.json:
        print(json.dumps(shown, allow_nan=False))  # noqa: T201
    else:
        _print(shown)
    return 0


def _key(options: argparse.Namespace) -> int:
    from stepwedge.signing import ensure_key, key_id, load_key, public_half

    if options.file.exists():
        raise StepwedgeError(f"{options.file}: is there already and is not overwritten; give another name")
    file = ensure_key(options.file)
    _say(f"{file}: your private key {key_id(load_key(file).public_key())}: nobody else may read it")
    _say(f"{public_half(file)}: its public half, for the setting trust.keys of the nodes that are to trust it")
    return 0


def _print(shown: dict[str, Any]) -> None:
    """A policy for people."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    # In a file or a pipe, nothing is to be cut off at 80 characters.
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else _WIDTH)

    def line(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    line(f"{shown['name']} {shown['version']}, for {shown['model']} (digest {shown['digest'][:16]}…)")
    table = Table("finding", "miss", "false alarm", "deferral", "prevalence", "clear below", "act from", box=box.SIMPLE)
    for name, finding in shown["findings"].items():
        table.add_row(name, *_cells(finding))
    console.print(table)
    for name, finding in shown["findings"].items():
        if finding["deferral_from_cap"]:
            line(
                f"{name}: the deferral costs {finding['deferral_stated']:g} as stated, and more for the workload cap; "
                f"{finding['deferred_share_fitted']:.1%} of the fitted studies are deferred"
            )
        if finding["inconclusive"]:
            line(f"{name}: never decided: {finding['inconclusive']}")
    fitted = shown["fitted"]
    if fitted is None:
        line("Not fitted on the site's own studies: the package's own gate applies.")
    else:
        cap = f", at most {fitted['workload_cap']:.1%} deferred" if fitted["workload_cap"] is not None else ""
        line(
            f"Fitted on {fitted['date']} on {fitted['images']} images of {fitted['studies']} studies, "
            f"{fitted['patients']} patients, for {fitted['false_rejection']:.2%} false rejections{cap}."
        )
    line(f"State: {shown['approval']}.")
    for entry in shown["approvals"]:
        note = f": {entry['note']}" if entry["note"] else ""
        line(
            f"  {entry['time']} {entry['action']} by {entry['by']} (key {entry['key']}), version "
            f"{entry['policy']['version']} for {entry['package']['name']} {entry['package']['version']}{note}"
        )
    if shown["demonstration_because"]:
        line(f"Results are a demonstration: {shown['demonstration_because']}.")
    elif shown["demonstration"] is False:
        line("Results are for clinical use.")
    for problem in shown["problems"]:
        line(f"Problem: {problem}")


def _cells(finding: dict[str, Any]) -> list[str]:
    def probability(value: float | None) -> str:
        return "–" if value is None else f"{value:.{_DECIMALS}f}"

    numbers = [f"{finding[field]:g}" for field in ("miss", "false_alarm", "deferral", "prevalence")]
    return [*numbers, probability(finding["clear_below"]), probability(finding["act_from"])]


def _say(text: str) -> None:
    print(text, file=sys.stderr)  # noqa: T201


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"wanted a share between 0 and 1, found {text!r}")
    return value
