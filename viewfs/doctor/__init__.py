"""Can this machine open a view? The real sequence is tried in a child, and a failure explained by the machine's state.

Three parts: `Facts`, which are read and not judged; `diagnose`, which turns a step, its errno and the facts into what
to do, and touches nothing; and the attempt, which is made of the functions that a session uses. A setting alone proves
little (on Ubuntu unshare(2) succeeds and the id map is refused), so facts are not asked as long as the steps succeed.

The child and all processes that it forks hold the report's pipe and share a process group: end-of-file on the pipe says
that none of them is left, and one that hangs is killed with the others.
"""

from viewfs.doctor.attempt import Report
from viewfs.doctor.examine import examine
from viewfs.doctor.facts import Facts, FuseDevice
from viewfs.doctor.remedies import apparmor_profile, diagnose
from viewfs.doctor.steps import STEPS, Step, works

__all__ = ["STEPS", "Facts", "FuseDevice", "Report", "Step", "apparmor_profile", "diagnose", "examine", "works"]
