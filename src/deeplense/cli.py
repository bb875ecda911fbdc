"""The command line: each command is a few lines that call the library, and the only place that prints."""

from __future__ import annotations

import errno
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from deeplense import __version__
from deeplense.errors import ConfigError, DeepLenseError, RunError

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)

Settings = Annotated[
    list[str] | None, typer.Argument(help="Settings as key=value, for example data=DIR train.epochs=5")
]
Run = Annotated[Path, typer.Argument(help="Folder of a finished run")]
Prevalence = Annotated[
    float | None, typer.Option(help="Share of lenses where the run is used, such as 1e-3; that of validation otherwise")
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bar")]


@app.callback(invoke_without_command=True)
def _start(
    version: Annotated[bool, typer.Option("--version", help="Show the version and stop")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and debug messages")] = False,
) -> None:
    """Strong gravitational lenses: simulate them, tell dark-matter substructure apart, judge the result."""
    if version:
        print(f"deeplense {__version__}")
        raise typer.Exit
    _log(logging.DEBUG if debug else logging.INFO)


@app.command()
def simulate(
    preset: Annotated[str, typer.Argument(help="Which kind of images; see --list, or give a .toml of your own")] = "",
    settings: Annotated[
        list[str] | None, typer.Argument(help="Values of the preset, as key=value: positive_fraction=0.05 kinds.star=0")
    ] = None,
    num: Annotated[int, typer.Option(help="How many images")] = 1000,
    out: Annotated[Path | None, typer.Option(help="Folder to write to")] = None,
    seed: Annotated[int, typer.Option(help="Names the sequence of images")] = 0,
    fidelity: Annotated[str, typer.Option(help="physical, or published: as the public data set, quirks included")] = (
        "physical"
    ),
    format: Annotated[str, typer.Option(help="parquet (shards and a dataset card) or npy (DeepLense folders)")] = (
        "parquet"
    ),
    device: Annotated[str, typer.Option(help="Where rays are traced: cpu or cuda")] = "cpu",
    compile: Annotated[bool, typer.Option("--compile", help="Several times faster after some seconds")] = False,
    galaxies: Annotated[Path | None, typer.Option(help="Folder of galaxy cutouts (FITS, .npy) as sources")] = None,
    part: Annotated[str | None, typer.Option(help="Which galaxies: train, val or test; none is in two parts")] = None,
    lens_galaxies: Annotated[
        Path | None, typer.Option(help="Folder of cutouts of early-type galaxies as the light of lenses (lens finding)")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that render and write")] = 1,
    preview: Annotated[Path | None, typer.Option(help="Draw a labelled grid of images to this picture instead")] = None,
    list_presets: Annotated[bool, typer.Option("--list", help="Show the presets and stop")] = False,
    quiet: Quiet = False,
) -> None:
    """Simulate images of lenses. The same command again continues after an interruption."""
    from deeplense.simulate import preset as presets

    if list_presets:
        for name in presets.names():
            for fidelity, world in presets.load(name).fidelities.items():
                print(f"{name:<14}{fidelity:<11}{world.about}")
        return
    if not preset or (out is None and preview is None):
        raise ConfigError("give a preset and --out DIR, for example: deeplense simulate common-test --out lenses")
    from deeplense import config as configs
    from deeplense.simulate.generate import Simulator

    given = configs.parse_settings(settings or [])
    options = {"device": device, "compile": compile, "galaxies": galaxies, "part": part, "lens_galaxies": lens_galaxies}
    simulator = Simulator(preset, fidelity, seed, settings=given, **options)  # type: ignore[arg-type]
    if preview is not None:
        from deeplense.simulate.preview import write_preview

        print(write_preview(simulator, preview))
    if out is not None:
        from deeplense.simulate.dataset import write_set

        write_set(simulator, num, out, format, progress=not quiet, workers=workers)
        print(f"{num} images of {preset} ({fidelity}, seed {seed}) are in {out}")


@app.command()
def convert(
    src: Annotated[Path, typer.Argument(help="Images in any layout: .npy folders, .npz, Parquet")],
    dst: Annotated[Path, typer.Argument(help="Folder to write to")],
    format: Annotated[str, typer.Option(help="parquet or npy")] = "parquet",
    max_bad_fraction: Annotated[float, typer.Option(help="Share of images that may be left out")] = 0.01,
    quiet: Quiet = False,
) -> None:
    """Bring images into another layout; nothing that exists is overwritten."""
    from deeplense.data.convert import convert as run

    counts = run(src, dst, to=format, max_bad_fraction=max_bad_fraction, progress=not quiet)
    for split, by_class in counts.items():
        text = ", ".join(f"{count} {name}".strip() for name, count in by_class.items())
        print(f"{dst / split}: {text} images")


@app.command()
def train(
    config: Annotated[str, typer.Argument(help="Name of a config (substructure, brief/substructure ...) or a .toml")],
    settings: Settings = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the resolved settings and stop")] = False,
    quiet: Quiet = False,
) -> None:
    """Train a network. The same command again continues an unfinished run."""
    from deeplense import config as configs

    resolved = configs.load(config, settings or [])
    if dry_run:
        print(resolved.to_toml(), end="")
        return
    from deeplense import train as training

    training.check_free(resolved)
    run = training.fit(resolved, training.load_data(resolved, progress=not quiet), progress=not quiet)
    if int(os.environ.get("LOCAL_RANK", "0")):
        return  # with devices=N, N processes come here
    print(f"the trained run is in {run}; judge it with: deeplense evaluate {run} data=DIR")


@app.command()
def profile(
    config: Annotated[str, typer.Argument(help="Name of a config, or a .toml, as of `deeplense train`")],
    settings: Settings = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps that are measured; a few more come before and after")] = 20,
    out: Annotated[
        Path | None, typer.Option(help="New .json, or a folder for trace.json: a timeline for ui.perfetto.dev")
    ] = None,
) -> None:
    """Show where a run's time goes: train a few steps, measure them, and forget them. No run folder is touched."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler's own notices; read when torch is loaded
    from deeplense import config as configs
    from deeplense import train as training
    from deeplense.train import profile as profiling

    resolved = configs.load(config, settings or [])
    trace = out / profiling.TRACE if out is not None and out.is_dir() else out
    profiling.check(resolved, steps, trace)
    images = training.load_data(resolved, progress=sys.stdout.isatty())
    found = profiling.profile(resolved, images, steps, trace)
    _print_profile(found)
    if trace is not None:
        print(f"timeline: {trace}; open it in ui.perfetto.dev")


@app.command()
def evaluate(
    run: Run,
    settings: Settings = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the report; the run folder if not given")] = None,
    prevalence: Prevalence = None,
    features: Annotated[
        Path | None, typer.Option(help="Of a diffusion run: substructure run in whose features images are compared")
    ] = None,
    samples: Annotated[
        Path | None, typer.Option(help="Of a diffusion run: what `deeplense sample` drew; drawn anew if not given")
    ] = None,
) -> None:
    """Judge a run on images that it has not seen: scores with intervals, and a report.

    Of a diffusion run, what it draws is compared with the images, beside a comparison of these with one another.
    """
    from deeplense.evaluate.judge import judge

    generated = None if samples is None else _images([f"data={samples}"])
    how: dict[str, Any] = {"prevalence": prevalence, "features": features, "generated": generated}
    metrics = judge(run, _images(settings), out, **how, progress=sys.stderr.isatty())
    print(_summary(metrics))
    print(f"report: {(out or run) / 'report.html'}")


@app.command()
def predict(
    run: Run,
    settings: Settings = None,
    out: Annotated[Path, typer.Option(help="Table to write: .csv or .parquet")] = Path("predictions.csv"),
    prevalence: Prevalence = None,
    engine: Annotated[str, typer.Option(help="torch, compile or onnx: what runs the network of a classifier")] = (
        "torch"
    ),
    int8: Annotated[
        bool, typer.Option("--int8", help="With --engine onnx: 8 bits in place of floats; says what that costs")
    ] = False,
    average: Annotated[
        str | None,
        typer.Option(
            help="none, flips or d4: what predictions are averaged over, that of the run if not given; none is several "
            "times faster, and probabilities keep the calibration of the run"
        ),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Probabilities for images, as a table; a set of any size, for it is read in parts."""
    from deeplense.data.read import parts
    from deeplense.engines import JUDGED_ON
    from deeplense.predict import Predictor, check_table, write_tables

    check_table(out)
    if int8 and engine != "onnx":
        raise ConfigError("--int8 is a matter of ONNX Runtime: add --engine onnx")
    path, split, reading = _named(settings, ("test", "val"))
    predictor = Predictor.load(run, engine=engine, average=average)
    if prevalence is not None:
        predictor.retarget(prevalence)
    images = parts(path, split=split, **reading)
    if int8:
        first, images = images.head(JUDGED_ON)
        print(predictor.quantise(first))
    progress = not quiet and sys.stderr.isatty()
    print(f"{write_tables(predictor.predict_parts(images), out, images.num, progress=progress)} rows are in {out}")


@app.command()
def fit(
    run: Annotated[str, typer.Argument(help="An inversion or physics run that says where to begin, or none")],
    image: Annotated[Path, typer.Argument(help="FITS or .npy, one band, the lens in the middle")],
    pixel_scale: Annotated[float | None, typer.Option(help="arcsec; that of the file if it has coordinates")] = None,
    psf: Annotated[str | None, typer.Option(help="FITS file of the PSF, as psf.fits or psf.fits[NAME]")] = None,
    psf_fwhm: Annotated[float | None, typer.Option(help="arcsec, of a Gaussian PSF in place of a file")] = None,
    noise_map: Annotated[Path | None, typer.Option(help="Standard deviation of each pixel")] = None,
    mask: Annotated[Path | None, typer.Option(help="Image that is not 0 where pixels do not count")] = None,
    mask_radius: Annotated[float, typer.Option(help="arcsec about the middle that do not count: lens light")] = 0.0,
    outer_radius: Annotated[float | None, typer.Option(help="arcsec beyond which no pixel counts")] = None,
    lens_light: Annotated[bool, typer.Option("--lens-light", help="Fit the light of the lens as well")] = False,
    source: Annotated[str, typer.Option(help="sersic, or pixels for a source on a grid")] = "sersic",
    z_lens: Annotated[float | None, typer.Option(help="Redshift of the lens; with both, its mass is stated")] = None,
    z_source: Annotated[float | None, typer.Option(help="Redshift of the source")] = None,
    out: Annotated[Path, typer.Option(help="New folder for lens.json, lens.fits and lens.png")] = Path("lens"),
) -> None:
    """Measure the lens in an image: a mass model with uncertainties, and pictures of it."""
    from deeplense.measure import measure

    about: dict[str, Any] = {"pixel_scale": pixel_scale, "psf": psf, "psf_fwhm": psf_fwhm, "noise_map": noise_map}
    where: dict[str, Any] = {"mask": mask, "mask_radius": mask_radius, "outer_radius": outer_radius}
    how: dict[str, Any] = {"lens_light": lens_light, "source": source, "z_lens": z_lens, "z_source": z_source}
    begin = None if run == "none" else Path(run)
    found = measure(begin, image, out, **about, **where, **how)
    values, std = found.values, found.std
    print(f"theta_E = {values['theta_E']:.4f} +- {std['theta_E']:.4f} arcsec, chi^2 per degree {found.chi2:.3f}")
    print(f"mass model and pictures: {out}")


@app.command()
def sample(
    run: Run,
    num: Annotated[int, typer.Option(help="How many images")] = 64,
    label: Annotated[str | None, typer.Option("--class", help="Class of all images; each in turn if not given")] = None,
    given: Annotated[
        list[str] | None, typer.Option(help="Value of a parameter that the model knows, as theta_E=1.2; repeatable")
    ] = None,
    sampler: Annotated[
        str | None, typer.Option(help="ddpm, ddim, dpm++ or unipc; that of the run if not given, as are the steps")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Noise levels that are visited")] = None,
    guidance: Annotated[float, typer.Option(help="Above 1, images are more typical and less diverse")] = 1.0,
    seed: Annotated[int, typer.Option(help="Names the sequence of images")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder to write to; drawn in the run folder if not given")] = None,
    format: Annotated[str, typer.Option(help="npy (DeepLense folders) or parquet (shards and a dataset card)")] = "npy",
    batch_size: Annotated[int, typer.Option(help="Images that are drawn together")] = 64,
    quiet: Quiet = False,
) -> None:
    """Draw new images with a diffusion model. The same command again continues after an interruption."""
    from deeplense import config as configs
    from deeplense.sample import sample as run_sampler

    values = configs.parse_settings(given or [])
    how: dict[str, Any] = {"sampler": sampler, "steps": steps, "guidance": guidance, "seed": seed}
    where: dict[str, Any] = {"batch_size": batch_size, "format": format, "progress": not quiet}
    print(f"{num} images are in {run_sampler(run, num, out, label=label, given=values, **how, **where)}")


@app.command()
def mine(
    run: Run,
    settings: Settings = None,
    out: Annotated[Path, typer.Option(help="Folder for the new set")] = Path("mined"),
    num: Annotated[int, typer.Option(help="How many non-lenses")] = 500,
    negatives_only: Annotated[bool, typer.Option("--negatives-only", help="Leave the lenses out")] = False,
) -> None:
    """Collect what a finder takes for lenses and is none: labelled or simulated images to train on next.

    Of a folder with splits, the training images, never those of the test.

    Simulated ones: data=preset:hsc-gri data.seed=7 data.num=20000, with another seed than that of training.
    """
    from deeplense import config as configs
    from deeplense import mine as mining

    data = configs.parse_data(settings or [], can_simulate=True)
    is_simulated = str(data.path).startswith("preset:")
    images = mining.simulated(data) if is_simulated else _images(settings, ("train", "val"))
    mined = mining.mine(run, images, out, num, negatives_only)
    print(f"{', '.join(f'{count} {name}' for name, count in mined.class_counts().items())} images are in {out}")


@app.command()
def export(
    run: Run,
    format: Annotated[
        str, typer.Option(help="json, json.gz, onnx or safetensors; diffusers: a folder (diffusion runs)")
    ] = "json",
    gzip: Annotated[bool, typer.Option("--gzip", help="Compress the JSON")] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="File or folder to write; weights.FORMAT or diffusers in the run folder if not given"),
    ] = None,
) -> None:
    """Write a run's weights in another format."""
    from deeplense import hub, weights
    from deeplense.tasks import DiffusionTask

    if format == "diffusers":
        print(hub.write_folder(weights.load_task(run, DiffusionTask), out or run / format))
        return
    ending = "json.gz" if gzip and format == "json" else format
    path = out or run / f"weights.{ending}"
    if not path.name.endswith(f".{ending}"):
        raise ConfigError(f"--out {path} does not end in .{ending}, which --format {format} writes")
    if path.exists():
        raise RunError(f"{path} exists and is never overwritten: choose another --out")
    weights.export(weights.load_task(run), path)
    print(path)


@app.command()
def explain(
    run: Run,
    image: Annotated[Path, typer.Argument(help="An image, or a set of images of which the first 8 are shown")],
    out: Annotated[Path, typer.Option(help="Picture to write: .png, .pdf or .svg")],
    layer: Annotated[str | None, typer.Option(help="Module whose maps are used; chosen if not given")] = None,
    method: Annotated[str, typer.Option(help="hires-cam, or grad-cam")] = "hires-cam",
) -> None:
    """Draw over an image what speaks for a lens, or for the class that the run sees in it."""
    from deeplense import weights
    from deeplense.evaluate.explain import check_picture, write_explanation
    from deeplense.tasks import Classifier

    check_picture(out)
    print(write_explanation(weights.load_task(run, Classifier), _images([f"data={image}"]), out, layer, method))


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder to work in")] = Path("demo"),
    quiet: Quiet = False,
) -> None:
    """Simulate, train, evaluate and report in a few minutes on a CPU: substructure, lenses, new images, masses."""
    from deeplense import demo as show

    for name, chapter in show.CHAPTERS.items():
        print(f"{name}: {_summary(show.run(out, progress=not quiet, chapter=name))}")
        print(f"report: {out / chapter.run / 'report.html'}")
    radii = ", ".join(f"{true:.3f} as {fit:.3f}" for true, fit in show.measure_three(out))
    print(f"physics: Einstein radii measured, arcsec: {radii}; what is left of the images: {out / show.PHYSICS}")


def _images(settings: list[str] | None, parts: tuple[str, ...] = ("test", "val")) -> Any:
    """The LensSet that ``data=...`` names; of a folder with splits, the first of these parts that is there."""
    from deeplense.data.read import read

    path, split, reading = _named(settings, parts)
    return read(path, split=split, **reading)


def _named(settings: list[str] | None, parts: tuple[str, ...]) -> tuple[str, str | None, dict[str, Any]]:
    """The images that ``data=...`` names: where, which of these parts of a folder with splits, and how to read them."""
    from deeplense import config as configs
    from deeplense.data.read import find_splits

    data = configs.parse_data(settings or [])
    if data.path is None:
        raise ConfigError("no images are named: add data=DIR")
    splits = find_splits(data.path)
    which = next((split for split in parts if split in splits), None)
    if which is None and "test" in splits:
        raise ConfigError(f"{data.path} holds test images only: to train on what is found in them, name them alone")
    return data.path, which, data.reading()


def _print_profile(found: Any) -> None:
    """A table of the parts of a step, and one of the operators that take most time."""
    from rich.console import Console
    from rich.table import Table

    from deeplense.train.profile import PARTS

    parts, console = Table("part", "of that", box=None, pad_edge=False), Console(highlight=False)
    operators = Table("operator", box=None, pad_edge=False)
    for name in ("ms a step", "share", "images/s"):
        parts.add_column(name, justify="right", no_wrap=True)
    for name in ("ms a step", "share", "calls"):
        operators.add_column(name, justify="right", no_wrap=True)
    for part in found.parts:
        rate = f"{1e3 * found.images / part.ms:,.0f}" if part.ms else ""
        parts.add_row(part.name, PARTS[part.name], f"{part.ms:.2f}", f"{part.share:.1%}", rate)
    parts.add_row("all", "", f"{found.ms:.2f}", "100.0%", f"{1e3 * found.images / found.ms:,.0f}")
    for operator in found.operators:
        figures = (f"{operator.ms:.2f}", f"{operator.share:.1%}", f"{operator.calls:g}")
        operators.add_row(operator.name, *figures)
    console.print(f"{found.steps} steps of {found.images:g} images on {found.device}")
    console.print(parts)
    if found.is_synchronised:
        console.print("Each part waited for the device at its end: training, which does not wait, is faster.")
    console.print("\nOperators with the largest self time, in other steps, slowed by torch.profiler:")
    console.print(operators)


def _summary(metrics: dict[str, Any]) -> str:
    if "at_completeness" in metrics:
        return _finder_summary(metrics)
    if "fidelity" in metrics:
        return _fidelity_summary(metrics)
    if "parameters" in metrics:
        return _measurement_summary(metrics)
    auc, accuracy = metrics["auc_macro"], metrics["accuracy"]
    if auc is None or auc.get("value") is None:
        return f"accuracy {_interval(accuracy)}; the AUC needs images of two classes or more"
    return f"macro AUC {_interval(auc)}, accuracy {_interval(accuracy)} on {metrics['n']} images"


def _measurement_summary(metrics: dict[str, Any]) -> str:
    scores = metrics["parameters"]["theta_E"]["all"]
    bias, scatter, covered = (scores["bias"]["value"], scores["scatter"]["value"], scores["coverage"])
    shares = " and ".join(f"{100 * covered[level]['value']:.0f} %" for level in ("0.68", "0.95"))
    return (
        f"theta_E: bias {bias:.2f} %, scatter {scatter:.2f} %, {shares} inside of the 68 % and 95 % intervals; chi^2/N "
        f"{metrics['chi2']['all']['median']['value']:.3f} (median) of {metrics['n']} images"
    )


def _fidelity_summary(metrics: dict[str, Any]) -> str:
    scores, memory = metrics["fidelity"]["scores"], metrics["fidelity"]["memorisation"]
    words = [f"ring radius {scores['ring_radius']['ratio']:.1f} times its floor"]
    if "frechet" in scores:
        words.insert(0, f"feature distance {scores['frechet']['ratio']:.1f} times its floor")
    if "pixel_auc" in scores:
        words.append(f"a network tells the pixels apart with AUC {scores['pixel_auc']['value']:.2f} (0.5: not at all)")
    if memory:
        words.append(f"memorisation ratio {memory['value']:.3f} (1: none)")
    return f"{', '.join(words)}; {metrics['n']} generated images against as many held-out ones"


def _finder_summary(metrics: dict[str, Any]) -> str:
    images = f"{metrics['n']} images, {metrics['n_lenses']} of them lenses"
    false = metrics["at_completeness"]["0.8"]["false_positives"]
    if metrics["auc"] is None or false is None:
        return f"nothing can be ranked: {images}"
    found = f"{false['value']:.0f} false positives at 80 % completeness"
    if false["low"] is not None:
        found += f" (95 % interval {false['low']:.0f} to {false['high']:.0f})"
    return f"{found}, AUC {_interval(metrics['auc'])} on {images}"


def _interval(figure: dict[str, float]) -> str:
    return f"{figure['value']:.4f} (95 % interval {figure['low']:.4f} to {figure['high']:.4f})"


def _log(level: int) -> None:
    """The library's messages on standard error: coloured for a person, whole lines for a file."""
    handler: logging.Handler = logging.StreamHandler()
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.logging import RichHandler

        handler = RichHandler(console=Console(stderr=True), show_path=False, show_time=False)
    package = logging.getLogger("deeplense")
    package.handlers[:] = [handler]
    package.setLevel(level)
    package.propagate = False


def main() -> None:
    """Run the command line; what a user can mend ends in one line and exit code 2."""
    debug = "--debug" in sys.argv
    # The flag may stand anywhere: the command line knows it only before the command.
    sys.argv[1:] = [*(["--debug"] if debug else []), *(word for word in sys.argv[1:] if word != "--debug")]
    try:
        app()
    except SystemExit as stop:
        # What typer makes of Ctrl-C outside of training, which has its own line.
        sys.exit(2 if stop.code in (1, 130) else stop.code)
    except (DeepLenseError, OSError) as error:
        if debug:
            raise
        print(f"Error: {' '.join(_explain(error).split())}", file=sys.stderr)
        sys.exit(2)


def _explain(error: Exception) -> str:
    if not isinstance(error, OSError):
        return str(error)
    if error.errno == errno.ENOSPC:
        return "the disk is full; what was complete is kept: make room, then run the command again"
    return str(error)


if __name__ == "__main__":
    main()
