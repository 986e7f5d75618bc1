"""Levels above the task: units such as parties, which several tasks share, or years, which divide a task's documents::

    θ_n = Θ + δ_task(n) + Σ_ℓ Δ_ℓ[unit of n at ℓ],     Δ_ℓ[u] ~ N(0, τ_ℓ⁻¹ I)

All deviations are rows of one matrix, the D tasks first, then the units of each level. A document adds 1/N of the prior
of each of its rows, with N the row's training documents, so absent rows are untouched and a step costs the same
however many there are. For nested levels (party → speaker) the optimum has

    Σ_u Δ_1[u] = 0,     Δ_party[p] = (τ_speaker / τ_party) Σ_{speakers of p} δ[s]
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

NONE = "(none)"  # the unit of an empty cell
OTHER = "(other)"  # stands for units that a run did not have


@dataclass(frozen=True)
class Levels:
    """The levels above the tasks.

    Attributes:
        columns: the table's column of each level.
        units: [L] the names of each level's units.
        taus: [L] precision of each level's deviations, 0 < τ < ∞.
        documents: training documents of each unit, level after level.
        of_task: [D, L] the unit of a task's documents, as an index within its level; −1 if they have several.
    """

    columns: list[str]
    units: list[list[str]]
    taus: list[float]
    documents: list[int]
    of_task: list[list[int]]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """List the units of all levels, (column, unit), in the matrix's order."""
        return [(column, unit) for column, units in zip(self.columns, self.units, strict=True) for unit in units]

    @property
    def names(self) -> list[str]:
        """Name the units of all levels, party=left, in the matrix's order."""
        return [f"{column}={unit}" for column, unit in self.pairs]

    def first_row(self, level: int, n_tasks: int) -> int:
        """Return the row of a level's first unit in the matrix."""
        return n_tasks + sum(len(units) for units in self.units[:level])

    def rows_of_task(self, task: int, n_tasks: int) -> list[int]:
        """List the rows of the units to which all of a task's documents belong."""
        found = enumerate(self.of_task[task])
        return [self.first_row(level, n_tasks) + unit for level, unit in found if unit >= 0]

    def rows_of_cells(self, values: Mapping[str, Sequence[str]], n_tasks: int) -> list[list[int]]:
        """List each document's rows, [N, L], from its cells; all units must be known.

        Args:
            values: column → each document's cell.
        """
        row = {pair: n_tasks + i for i, pair in enumerate(self.pairs)}
        of_column = ([row[column, cell or NONE] for cell in values[column]] for column in self.columns)
        return [list(of_one) for of_one in zip(*of_column, strict=True)]

    def row_taus(self) -> list[float]:
        """List the τ of each unit, level after level."""
        return [tau for tau, units in zip(self.taus, self.units, strict=True) for _ in units]


def describe_confounded(levels: Levels, tasks: Sequence[int], rows: Sequence[Sequence[int]]) -> list[str]:
    """Describe, a line each, where a level can hardly be told apart from the tasks.

    That is: units with one task; tasks in groups without a common unit, such as speakers who spoke in some years
    only and others in other years; units without a training document; levels of few units.

    Args:
        tasks, rows: of each document, as in `build_levels`.
    """
    lines = []
    for level, (column, units) in enumerate(zip(levels.columns, levels.units, strict=True)):
        of_task = [row[level] for row in levels.of_task]
        crossed, first = of_task.count(-1), levels.first_row(level, len(of_task))
        pairs = {(row[level] - first, task - first) for row, task in zip(rows, tasks, strict=True)}  # tasks below 0
        n_tasks = Counter(unit for unit, _ in pairs)
        alone = [name for u, name in enumerate(units) if n_tasks[u] == 1 and u in of_task]
        if alone:
            named = ", ".join(alone[:3]) + (", …" if len(alone) > 3 else "")
            lines.append(
                f"{column}: {len(alone)} of {len(units)} units have one task ({named}); there only the sum of the two "
                "deviations is known, and 1/τ divides it"
            )
        if 2 * crossed > len(of_task) and (groups := _count_groups(pairs)) > 1:
            lines.append(
                f"{column}: the tasks fall into {groups} groups that share none of its units; between the groups only "
                "the sum of the two deviations is known, and 1/τ divides it"
            )
        documents = levels.documents[first - len(of_task) :][: len(units)]
        if unseen := [name for name, n in zip(units, documents, strict=True) if not n]:
            lines.append(f"{column}: {len(unseen)} of {len(units)} units have no training document ({unseen[0]}, …)")
        if len(units) < 5:
            lines.append(f"{column} has {len(units)} units: too few to say how much they differ")
    return lines


def _count_groups(pairs: Iterable[tuple[int, int]]) -> int:
    """Count the connected components of a graph, given its edges."""
    groups: list[set[int]] = []
    for pair in pairs:
        joined = set(pair).union(*(group for group in groups if not group.isdisjoint(pair)))
        groups = [group for group in groups if group.isdisjoint(pair)] + [joined]
    return len(groups)


def build_levels(
    values: Mapping[str, Sequence[str]], tasks: Sequence[int], training: Sequence[bool], taus: Sequence[float]
) -> tuple[Levels, list[list[int]]]:
    """Sort documents into the units of each level.

    Args:
        values: column → each document's cell; empty cells form the unit NONE.
        tasks: each document's task, 0 ≤ d < D.
        training: whether each document is trained on.
        taus: τ of each column.

    Returns:
        The levels, and each document's row in the matrix for each level, [N, L].

    Raises:
        ValueError: a level divides the documents exactly as the tasks or another level do, or has one unit.
    """
    units, documents, places = [], [], []
    partitions: dict[tuple[int, ...], str] = {_partition(tasks): "the tasks"}
    for column, cells in values.items():
        names = list(dict.fromkeys(cell or NONE for cell in cells))
        place = {name: i for i, name in enumerate(names)}
        mine = [place[cell or NONE] for cell in cells]
        same = partitions.setdefault(_partition(mine), column)
        if same != column:
            raise ValueError(f"{column} and {same} divide the documents alike, so the two cannot be told apart")
        if len(names) == 1:
            raise ValueError(f"{column} has one value, {names[0]!r}, so it is no level")
        counts = [0] * len(names)
        for unit, trained in zip(mine, training, strict=True):
            counts[unit] += trained
        units.append(names)
        documents += counts
        places.append(mine)
    of_task, rows = _place(places, units, tasks)
    return Levels(list(values), units, list(taus), documents, of_task), rows


def place_new(
    levels: Levels, values: Mapping[str, Sequence[str]], tasks: Sequence[int]
) -> tuple[Levels, list[list[int]]]:
    """Sort documents of new tasks into a run's units. In unknown units Δ is 0, its prior mean.

    Args:
        values: column → each document's cell; columns of the levels may be missing.
        tasks: each document's task, 0 ≤ d < D.

    Returns:
        The new tasks' levels, each with one unit more, (other); and the documents' rows, [N, L].
    """
    units = [[*own, OTHER] for own in levels.units]
    places = []
    for column, own in zip(levels.columns, units, strict=True):
        place = {name: i for i, name in enumerate(own)}
        cells = values.get(column, [OTHER] * len(tasks))
        places.append([place.get(cell or NONE, len(own) - 1) for cell in cells])
    of_task, rows = _place(places, units, tasks)
    # Units are not fitted, so their numbers of documents do not matter.
    return Levels(levels.columns, units, levels.taus, [1] * sum(map(len, units)), of_task), rows


def describe_unknown(levels: Levels, values: Mapping[str, Sequence[str]]) -> list[str]:
    """Describe, a line a level, the units of new tasks that the run does not know; see `place_new`."""
    lines = []
    for column, units in zip(levels.columns, levels.units, strict=True):
        new = [cell or NONE for cell in dict.fromkeys(values.get(column, ())) if (cell or NONE) not in units]
        if column not in values:
            lines.append(f"{column}: not in the table, so the tasks are taken to be of new units of it")
        elif new:
            named = ", ".join(new[:3]) + (", …" if len(new) > 3 else "")
            lines.append(f"{column}: {len(new)} units are new to the run; their deviation is taken as 0 ({named})")
    return lines


def _place(
    places: Sequence[Sequence[int]], units: Sequence[Sequence[str]], tasks: Sequence[int]
) -> tuple[list[list[int]], list[list[int]]]:
    """Find the units of whole tasks, and the documents' rows.

    Args:
        places: [L, N] each document's unit, as an index within its level.
        units: [L] the names of each level's units.
        tasks: [N] each document's task, 0 ≤ d < D.

    Returns:
        Levels.of_task, [D, L]; rows of the matrix, [N, L].
    """
    n_tasks = first = max(tasks) + 1
    of_task: list[list[int]] = [[] for _ in range(n_tasks)]
    rows: list[list[int]] = [[] for _ in tasks]
    for mine, own in zip(places, units, strict=True):
        seen: list[set[int]] = [set() for _ in range(n_tasks)]
        for row, unit, task in zip(rows, mine, tasks, strict=True):
            row.append(first + unit)
            seen[task].add(unit)
        for of_one, found in zip(of_task, seen, strict=True):
            of_one.append(found.pop() if len(found) == 1 else -1)
        first += len(own)
    return of_task, rows


def _partition(labels: Sequence[int]) -> tuple[int, ...]:
    """Number labels by first appearance, so that equal partitions give equal tuples."""
    numbers: dict[int, int] = {}
    return tuple(numbers.setdefault(label, len(numbers)) for label in labels)
