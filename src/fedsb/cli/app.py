"""The command line: parse, call, print."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from fedsb.cli.audit import audit
from fedsb.cli.common import AsJson, Overrides, With, err_console, out_console, print_json, refuse_unused
from fedsb.cli.cost_command import cost
from fedsb.cli.deploy import deploy
from fedsb.cli.privacy import privacy
from fedsb.cli.report import report
from fedsb.cli.reproduce import reproduce
from fedsb.common.cores import WAITING
from fedsb.common.stage import DEBUG
from fedsb.errors import FedsbError, InputError, explain
from fedsb.report.screen import shown

app = typer.Typer(
    name="fedsb",
    help="Fine-tune a language model across clients that keep their data.\n\n"
    "Start with `fedsb run`: it needs nothing and takes about a minute.",
    epilog="Any command takes --debug, which shows the traceback of an error.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    suggest_commands=hasattr(typer, "_click"),  # otherwise click itself does
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        version()
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Print the version.")
    ] = False,
) -> None:
    """What stands before a command."""


@app.command()
def run(
    config: Annotated[
        Path | None, typer.Argument(help="YAML file; without it the built-in quickstart.")
    ] = None,
    set_: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder. Default: runs/NAME, numbered if taken.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume a run that was stopped.")] = False,
    with_: With = None,
) -> None:
    """Fine-tune across clients and leave a run folder with adapter/ and report.html.

    Examples: `fedsb run` · `fedsb run recipes/sst2.yaml -s method.rank=32 --out runs/r32` ·
    `fedsb run --out runs/r32 --resume`
    """
    from fedsb.cli import terminal
    from fedsb.report.result import show_result

    folder = out or terminal.default_folder(config, resume=resume)
    try:
        summary = terminal.run_in_terminal(config, set_ or [], folder, resume=resume, console=out_console)
    except KeyboardInterrupt:
        err_console.print(terminal.how_to_resume(folder, with_ or []), highlight=False, markup=False)
        raise typer.Exit(130) from None
    show_result(summary, folder, out_console)


@app.command()
def compare(
    config: Annotated[Path, typer.Argument(help="YAML file; its section `compare` sets arms and rates.")],
    methods: Annotated[str, typer.Option(help="Methods or arms, by commas; the first is the reference.")],
    seeds: Annotated[str, typer.Option(help="Whole numbers, by commas.")] = "0,1,2",
    out: Annotated[
        Path | None,
        typer.Option(help="Folder; a taken one is resumed. Default: runs/compare-NAME, numbered."),
    ] = None,
    set_: Overrides = None,
    jobs: Annotated[int, typer.Option(help="Runs at a time, which share the cores.")] = 1,
    with_: With = None,
) -> None:
    """Compare methods over seeds: same data, partition, batches and budget; a table and a page.

    Learning rates are chosen on training rows held out for that, never on the test data. Given again with the
    same --out, the command resumes where it stopped; more methods and seeds may be named then.

    Examples: `fedsb compare recipes/sst2.yaml --methods fed-sb,fedit` ·
    `fedsb compare recipes/compare/sst2-iid.yaml --methods fed-sb,fedit --seeds 0,1 --jobs 2 --out runs/c` ·
    `fedsb compare recipes/sst2.yaml --with mine.py --methods mine,fed-sb`
    """
    from fedsb.cli import compare as terminal

    folder = out or terminal.comparison_folder(config)
    arms, numbers = terminal.names_of("--methods", methods), terminal.seeds_of(seeds)
    try:
        comparison = terminal.compare_in_terminal(
            config, set_ or [], arms, numbers, folder, jobs=jobs, console=out_console
        )
    except KeyboardInterrupt:
        text = terminal.how_to_resume(config, set_ or [], methods, seeds, folder, jobs, with_ or [])
        err_console.print(text, highlight=False, markup=False)
        raise typer.Exit(130) from None
    terminal.show_comparison(comparison, out_console)


@app.command()
def evaluate(
    run_folder: Annotated[
        Path | None, typer.Option("--run", help="Run folder: its model and its adapter.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Hub id or folder of a model.")] = None,
    adapter: Annotated[Path | None, typer.Option(help="PEFT LoRA folder to put on --model.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="Task and data. Default with --run: the run's own.")
    ] = None,
    set_: Overrides = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for answers and scores. Default with --run alone: evaluation/ in the run."),
    ] = None,
    json_: AsJson = False,
) -> None:
    """Score a run, or any model with or without an adapter, on a config's test data and benchmarks.

    Every score has its number of examples and a 95 % interval. Stopped, the same command resumes.

    Examples: `fedsb evaluate --run runs/quickstart` ·
    `fedsb evaluate --model bert-base-cased --adapter runs/a/adapter --config recipes/snli.yaml --json`
    """
    from fedsb.cli import terminal

    watch = None if json_ else out_console
    result = terminal.evaluate_in_terminal(run_folder, model, adapter, config, set_ or [], out, watch)
    print_json(result) if json_ else terminal.show_scores(result, out_console)


@app.command()
def predict(
    run_folder: Annotated[Path, typer.Argument(help="A finished run folder.")],
    file: Annotated[str, typer.Argument(help="Rows as data.test has them; no label or response is needed.")],
    out: Annotated[
        Path | None, typer.Option(help="New file, an object per line. Default: the terminal.")
    ] = None,
    set_: Overrides = None,
) -> None:
    """Label or answer each row of a file with a finished run's model.

    Examples: `fedsb predict runs/quickstart notes.jsonl --out labels.jsonl` ·
    `fedsb predict runs/chat questions.jsonl -s evaluation.generation.temperature=0.7`
    """
    from fedsb.cli.predict import predict_in_terminal

    predict_in_terminal(run_folder, file, out, set_ or [], out_console)


@app.command()
def chat(
    run_folder: Annotated[Path, typer.Argument(help="A finished run folder, of task.kind: chat.")],
    system: Annotated[str | None, typer.Option(help="A system message to begin with.")] = None,
    set_: Overrides = None,
) -> None:
    """Talk to a finished run's model: a line, an answer, and so on. /new begins again, /quit or Ctrl-D ends.

    Examples: `fedsb chat runs/chat` · `fedsb chat runs/chat -s evaluation.generation.temperature=0.7`
    """
    from fedsb.cli.chat import chat_in_terminal

    chat_in_terminal(run_folder, system, set_ or [], out_console)


@app.command()
def export(
    run_folder: Annotated[Path, typer.Argument(help="A finished run folder.")],
    out: Annotated[Path, typer.Option(help="New folder to write.")],
    format_: Annotated[
        str, typer.Option("--format", help="lora (PEFT folder), merged (whole model) or experts (one each).")
    ] = "lora",
    rank: Annotated[
        int | None,
        typer.Option(help="lora, experts: at this rank, exactly; refused if it would lose anything."),
    ] = None,
    server: Annotated[
        str | None, typer.Option("--for", help="lora, experts: vllm pads to the next rank vLLM accepts.")
    ] = None,
    expert: Annotated[
        str | None, typer.Option(help="lora, merged: of a mixture this one, or `mean`, which has no router.")
    ] = None,
    client: Annotated[
        str | None,
        typer.Option(help="lora, merged: this site's own model, where something stays with each client."),
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="Where the base model is now, if it was moved: folder or hub id.")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="merged: float32, bfloat16 or float16. Default: the run's, which 16 bits round to."
        ),
    ] = None,
) -> None:
    """Write the adapter as a standard PEFT LoRA folder, or the base model with the adapter merged in.

    Either way with a model card, and only after what was written gave the run's logits again.

    Examples: `fedsb export runs/quickstart --format lora --rank 64 --out lora64` ·
    `fedsb export runs/e2e --format lora --for vllm --out served` ·
    `fedsb export runs/quickstart --format merged --out merged` ·
    `fedsb export runs/mixture --format experts --for vllm --out experts` ·
    `fedsb export runs/personal --client north --out north`
    """
    from fedsb.cli import terminal
    from fedsb.cli.options import check_export
    from fedsb.runner.export import export_experts, export_lora, export_merged

    check_export(format_, rank=rank, server=server, dtype=dtype, expert=expert, client=client)
    if format_ == "lora":
        choice = {"expert": expert, "client": client, "base": base}
        export_lora(run_folder, out, rank=rank, server=server, **choice)  # type: ignore[arg-type]
    elif format_ == "experts":
        export_experts(run_folder, out, rank=rank, server=server, base=base)  # type: ignore[arg-type]
    else:
        merged = export_merged(run_folder, out, expert=expert, client=client, base=base, dtype=dtype)
        terminal.show_merged(merged, out_console)
    out_console.print(f"wrote {out} and checked it", highlight=False, markup=False)


@app.command()
def doctor(
    config: Annotated[
        Path | None, typer.Argument(help="YAML file to check; without it only the machine.")
    ] = None,
    set_: Overrides = None,
    json_: AsJson = False,
    with_: With = None,
) -> None:
    """Check versions, data, model, target layers, traffic and memory before a run.

    Examples: `fedsb doctor` · `fedsb doctor recipes/sst2.yaml -s data.train=mine.jsonl`
    """
    from fedsb.cli import terminal
    from fedsb.cli.doctor import as_json, examine
    from fedsb.cli.options import check_run_overrides
    from fedsb.config import RunConfig

    if config is None:
        refuse_unused({"-s": set_}, "without a config there is nothing to set")
    check_run_overrides(set_ or [])
    findings = list(examine(RunConfig.from_yaml(config, set_ or []) if config else None))
    print_json(as_json(findings)) if json_ else terminal.show_findings(findings, out_console)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(2)


app.command()(cost)
app.command()(reproduce)
app.command()(report)
app.command()(privacy)
app.command()(audit)
app.add_typer(deploy, name="deploy")


@app.command()
def status(
    run_dir: Annotated[Path, typer.Argument(help="Run folder, finished or not.")],
    json_: AsJson = False,
) -> None:
    """Where a run stands: rounds, scores, bytes, epsilon, who was left out. Also while it runs.

    Example: `fedsb status runs/one` · `watch fedsb status hospitals/run`
    """
    from fedsb.cli import terminal
    from fedsb.cli.status import run_status

    status = run_status(run_dir)
    print_json(status) if json_ else terminal.show_status(status, out_console)


@app.command()
def version() -> None:
    """Print the version."""
    from importlib.metadata import version as installed

    out_console.print(installed("fedsb"), highlight=False)


def main() -> None:
    """Entry point: turns errors into one message and an exit status (1 failed, 2 wrong input)."""
    debug = "--debug" in sys.argv
    if debug:
        os.environ[DEBUG] = "1"
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.update(WAITING)
    try:
        app()
    except Exception as error:
        if debug:
            raise
        _explain(error)
        sys.exit(2 if isinstance(error, InputError) else 1)


def _explain(error: Exception) -> None:
    """Print a message of bounded length, since it may quote a file."""
    text = shown(explain(error), 8000, keep="\n")
    if not isinstance(error, FedsbError):
        text += "\nThis was not expected; add --debug to see where it happened."
    err_console.print(f"[bold red]error:[/] {text}", highlight=False)


if __name__ == "__main__":
    main()
