"""What the process that the user started does with signals: they are waited for, and most are passed on."""

from __future__ import annotations

import os

from viewfs.linux.plain import signal

__all__ = ["FORWARDED", "FROM_TERMINAL", "WAITED_FOR", "next_signal"]

#: Passed on to the command if somebody sends them to us; the terminal sends its own to both.
FORWARDED = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
FROM_TERMINAL = (signal.SIGINT, signal.SIGQUIT)
WAITED_FOR = {signal.SIGCHLD, signal.SIGCONT, *FORWARDED, *FROM_TERMINAL}
#: si_code of a signal that the kernel itself sent, as for a key of the terminal (SI_KERNEL of asm-generic/siginfo.h).
_SI_KERNEL = 0x80


def next_signal(command: int) -> int:
    """Wait for a signal, and pass it on unless it is about a child, or the terminal has sent it to the command too."""
    information = signal.sigwaitinfo(WAITED_FOR)
    number = information.si_signo
    from_terminal = number in FROM_TERMINAL and information.si_code == _SI_KERNEL
    if number != signal.SIGCHLD and not from_terminal:
        try:
            os.kill(command, number)
        except ProcessLookupError:
            pass
    return number
