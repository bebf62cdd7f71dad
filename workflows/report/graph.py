"""What `selfloop check` prints of a config that is right: its graph, its actors, and how many rows to expect."""

from __future__ import annotations

from selfloop.workflows.config import Config
from selfloop.workflows.config.devices import bundles
from selfloop.workflows.flow.graph import Graph, Node
from selfloop.workflows.flow.recipe import Recipe
from selfloop.workflows.flow.verbs.source import Source
from selfloop.workflows.report.text import title_of
from selfloop.workflows.run.setup import Setup

__all__ = ["describe", "mermaid"]


def describe(config: Config, gpus: int = 0, setup: Setup | None = None) -> str:
    """The graph of the first iteration as text and Mermaid, the devices asked for, the rows estimated."""
    setup = setup or Setup(config)
    graph = setup.planner.graph(min(2, config.iterations))
    rows = estimate(graph, setup)
    many = sum(rows.values())
    parts = [
        f"{title_of(setup.recipe, config.recipe)}, iteration {graph.iteration} of {config.iterations}",
        settings(setup.recipe),
        "\n".join(line(graph, node, rows) for node in graph),
        f"Devices: {devices(config, gpus)}",
        f"Rows an iteration: about {many:,} in {len(rows)} nodes; {config.iterations * many:,} in all",
        f"Mermaid (paste into any Markdown page):\n```mermaid\n{mermaid(graph)}\n```",
    ]
    return "\n\n".join(parts)


def settings(recipe: Recipe) -> str:
    """Every setting with its value, and for one that a variant sets to another value this one beside it."""
    chosen = str(getattr(recipe, "variant", ""))
    fills = recipe.variant_settings(chosen) if chosen in recipe.variants else {}
    lines: list[str] = []
    for name in type(recipe).model_fields:
        value = getattr(recipe, name)
        wanted = fills.get(name, value)
        note = f"  (variant {chosen}: {wanted})" if wanted != value else ""
        lines.append(f"  {name}: {value}{note}")
    head = f"Settings, as variant {chosen} fills them in:" if fills else "Settings:"
    return "\n".join([head, *lines])


def line(graph: Graph, node: Node, rows: dict[str, int]) -> str:
    """One node: its name, inputs, model and place, with the columns that it adds."""
    before = (
        frozenset().union(*(graph.nodes[name].columns for name in node.inputs))
        if node.inputs
        else frozenset()
    )
    added = sorted(node.columns - before)
    what = f"{node.name} <- {', '.join(node.inputs)}" if node.inputs else node.name
    if node.training is not None:
        training = node.training
        reference = f", reference {training.reference.name}" if training.reference else ""
        made = [f"{role}@{model.version}" for role, model in graph.outputs.items() if model.node == node.name]
        return (f"  {what}  [trainer: {type(training.objective).__name__} from {training.start.name}{reference}, "
                f"{training.optimizer} optimizer -> {', '.join(made) or 'a model that is thrown away'}]")  # fmt: skip
    assert node.op is not None
    place = f"{node.op.place}: {node.model.name}" if node.model else node.op.place
    columns = f"  + {', '.join(added)}" if added else ""
    return f"  {what}  [{place}]  about {rows.get(node.name, 0):,} rows{columns}"


def estimate(graph: Graph, setup: Setup) -> dict[str, int]:
    """Rows of every node at most: what a rule drops is not known before."""
    rows: dict[str, int] = {}
    for node in graph:
        if node.op is not None:  # rows of an earlier iteration are counted as none: they are not known yet
            source = setup.sources[node.op.source].num_rows if isinstance(node.op, Source) else 0
            # saved rows, whose number is not known, may stand first: another stream's then says more
            inputs = node.row_inputs if node.op.barrier else node.inputs
            read = max((rows[name] for name in inputs), default=source)
            rows[node.name] = node.op.rows(read, setup.sources["prompts"].num_rows)
    return rows


def devices(config: Config, gpus: int) -> str:
    """The placement group in words."""
    wanted = bundles(config, gpus)
    each = ", ".join(" + ".join(f"{amount:g} {kind}" for kind, amount in bundle.items()) for bundle in wanted)
    generator, trainer = config.generator, config.trainer
    return (f"{generator.replicas} {generator.engine} engine(s) and {trainer.ranks} DeepSpeed rank(s), ZeRO {trainer.zero}, "
            f"{config.placement}: {each}")  # fmt: skip


def mermaid(graph: Graph) -> str:
    """The graph as a Mermaid flowchart."""
    ids = {name: f"n{number}" for number, name in enumerate(graph.nodes)}
    lines = ["flowchart LR"]
    for node in graph:
        shape = ("[[", "]]") if node.training is not None else ("([", "])") if not node.inputs else ("[", "]")
        model = f"<br/>{node.model.name}" if node.model else ""
        lines.append(f'  {ids[node.name]}{shape[0]}"{node.name}{model}"{shape[1]}')
        lines += [f"  {ids[name]} --> {ids[node.name]}" for name in node.inputs]
        lines += [f"  {ids[model.node]} -.-> {ids[node.name]}" for model in node.models if model.node]
    return "\n".join(lines)
