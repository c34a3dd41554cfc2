"""Jobs that are dead, and that a run goes on without. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from ..model.absent import Failed
from ..model.graph import OVER, overall
from ..model.status import Failure
from .node import ONE, Node, total


class Deaths:
    """The deaths that were tolerated in a run.

    Args:
        given_up: them, by the address of the branch.
        tolerated: the addresses of jobs of which that is known.
    """

    def __init__(self, given_up: Mapping[str, Failed], tolerated: Collection[str]) -> None:
        self.given_up = given_up
        self.known = {failed.address: failed for failed in given_up.values()}
        self.jobs = {*tolerated, *self.known}
        self.broken = {each for job in self.jobs for each in self._inside(job)}

    def __contains__(self, address: str) -> bool:
        return address in self.jobs

    def failure(self, address: str, task: str) -> Failure | None:
        """What is known of a job that died before the run was resumed."""
        failed = self.known.get(address)
        if failed is None:
            return None
        return Failure(address, task, "", failed.exception, failed.message, "", 0, True, "")

    def branches(self, need: int, branches: Sequence[Node]) -> tuple[list[Node], bool]:
        """The *branches* of a parallel that goes on without some of them, and whether it has: then
        what is left of them is skipped.

        *need* is how many have to succeed, or 0.
        """
        whole = sum(self._is_whole(each) for each in branches)
        given_up = sum(each.address in self.given_up for each in branches)
        passed = whole >= need if need else whole + given_up == len(branches)
        found = list(branches)
        if passed:
            found = [_without_waiting(each) if self._is_left(each) else each for each in found]
        return [self._marked(each) for each in found], passed

    def _marked(self, branch: Node) -> Node:
        gone = branch.address in self.given_up
        return branch._replace(state="tolerated") if gone else branch

    def _is_whole(self, branch: Node) -> bool:
        """Whether the branch has succeeded."""
        if branch.address in self.given_up or branch.address in self.broken:
            return False
        return all(state in OVER for state, count in total([branch]).items() if count)

    def _is_left(self, branch: Node) -> bool:
        """Whether no more of the branch begins."""
        if branch.address in self.given_up:
            return True
        return not any(count for state, count in branch.states.items() if state not in _UNBEGUN)

    def _inside(self, job: str) -> list[str]:
        """The nodes that a death takes along: those around the job, in the branch given up."""
        found: list[str] = []
        while job and job not in self.given_up:
            found.append(job)
            job = job.rpartition(".")[0]
        return found if job else []


_UNBEGUN = ("waiting", "skipped")


def _without_waiting(node: Node) -> Node:
    """*node* with what waits in it skipped."""
    if not node.states.get("waiting"):
        return node
    if node.kind == "job":
        return node._replace(state="skipped", states=ONE["skipped"])
    below = tuple(map(_without_waiting, node.below))
    states = total(below)
    return node._replace(state=overall(states), states=states, below=below)
