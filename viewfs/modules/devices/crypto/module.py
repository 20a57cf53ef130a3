"""The device itself: ioctls as calls of sessions, and the caller's buffers in and out.

Everything is read before anything is written, so that buffers may be the same, or overlap. CRIOGET, which asks for a
new descriptor in the caller, fails with ENOTTY: a server behind FUSE can't give one. (Programs for Linux do not use it,
because the header says that it is not needed.)
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import secrets
from collections.abc import Iterator, Mapping
from typing import Any

from viewfs.errors import MachineError, os_error
from viewfs.modules.api import Mounting
from viewfs.modules.api.device import Call, CallerMemory, CharDevice, DeviceFile, DeviceModule
from viewfs.modules.api.ioctls import ioctl
from viewfs.modules.api.options import choice
from viewfs.modules.devices.crypto.algorithms import LIBRARY, Backend
from viewfs.modules.devices.crypto.kernel import KERNEL, is_available
from viewfs.modules.devices.crypto.layouts import (
    CIOCASYMFEAT,
    CIOCCPHASH,
    CIOCFSESSION,
    CIOCGSESSINFO,
    COP_DECRYPT,
    COP_ENCRYPT,
    COP_FLAG_AEAD_SRTP_TYPE,
    COP_FLAG_AEAD_TLS_TYPE,
    COP_FLAG_FINAL,
    COP_FLAG_RESET,
    COP_FLAG_UPDATE,
    COP_FLAG_WRITE_IV,
    SIOP_FLAG_KERNEL_DRIVER_ONLY,
    CopyHashOp,
    CryptAuthOp,
    CryptAuthOp32,
    CryptOp,
    CryptOp32,
    SessionInfoOp,
    SessionOp,
    SessionOp32,
    authcrypt_command,
    crypt_command,
    session_command,
)
from viewfs.modules.devices.crypto.session import BLOCK, Session

__all__ = ["Crypto"]

#: CRYPTO_CIPHER_MAX_KEY_LEN, CRYPTO_HMAC_MAX_KEY_LEN
_MAX_KEY, _MAX_MAC_KEY = 64, 512
_BACKENDS = {backend.name: backend for backend in (LIBRARY, KERNEL)}
#: Sessions of one descriptor.
_MAX_SESSIONS = 1024
#: Bytes of each of the buffers that are kept from call to call.
_ROOM = (256 << 10) + BLOCK


class _File(DeviceFile):
    device: _Device

    def __init__(self, device: _Device, call: Call, before: Mapping[int, bytes] | None = None) -> None:
        """`before`: the states of the sessions that this file had in an earlier server, by number."""
        super().__init__(device, call)
        self._sessions: dict[int, Session] = {}
        for number, state in (before or {}).items():
            self._sessions[number] = Session.restored(state, device.backend)

    def _session(self, number: int) -> Session:
        try:
            return self._sessions[number]
        except KeyError:
            raise os_error(errno.EINVAL) from None

    @contextlib.contextmanager
    def _used(self, call: Call, op: Any) -> Iterator[Session]:
        """Session `op.ses`, whose state at the end of the block is remembered for a later server."""
        if call.is_again and op.src < op.dst + op.len and op.dst < op.src + op.len:
            raise os_error(errno.EIO)  # the earlier server may have overwritten the input
        session = self._session(op.ses)
        try:
            yield session
        finally:
            state = session.state()
            if self.remembered.get(op.ses) != state:
                self.remember(state, op.ses)

    @ioctl(session_command(SessionOp), SessionOp)
    @ioctl(session_command(SessionOp32), SessionOp32)
    def begin(self, call: Call, op: Any) -> None:
        """CIOCGSESSION."""
        if len(self._sessions) >= _MAX_SESSIONS:
            raise os_error(errno.ENOMEM)
        if op.keylen > _MAX_KEY or op.mackeylen > _MAX_MAC_KEY:
            raise os_error(errno.EINVAL)
        key = bytes(call.memory.read(op.key, op.keylen)) if op.cipher else b""
        mac_key = bytes(call.memory.read(op.mackey, op.mackeylen)) if op.mac else b""
        session = Session(op.cipher, key, op.mac, mac_key, self.device.backend)
        number = 0
        while not number or number in self._sessions:
            number = secrets.randbits(32)
        self._sessions[number] = session
        self.remember(session.state(), number)
        op.ses = number

    @ioctl(CIOCFSESSION, ctypes.c_uint32)
    def end(self, call: Call, number: ctypes.c_uint32) -> None:
        self._session(number.value).close()
        del self._sessions[number.value]
        self.remember(None, number.value)

    @ioctl(CIOCGSESSINFO, SessionInfoOp)
    def describe(self, call: Call, info: SessionInfoOp) -> None:
        """CIOCGSESSINFO: names, and the flag without which OpenSSL's engine uses code of its own instead."""
        cipher, mac = self._session(info.ses).names
        for names, name in ((info.cipher_info, cipher), (info.hash_info, mac)):
            names.cra_name = name.encode()
            names.cra_driver_name = f"{name}-{self.device.backend.name}".encode() if name else b""
        info.alignmask = 0
        info.flags = SIOP_FLAG_KERNEL_DRIVER_ONLY

    @ioctl(CIOCASYMFEAT, ctypes.c_uint32)
    def asymmetric_features(self, call: Call, features: ctypes.c_uint32) -> None:
        features.value = 0

    @ioctl(CIOCCPHASH, CopyHashOp)
    def copy_hash(self, call: Call, op: CopyHashOp) -> None:
        session = self._session(op.dst_ses)
        session.copy_hash(self._session(op.src_ses))
        self.remember(session.state(), op.dst_ses)

    @ioctl(crypt_command(CryptOp), CryptOp)
    @ioctl(crypt_command(CryptOp32), CryptOp32)
    def crypt(self, call: Call, op: Any) -> None:
        """CIOCCRYPT."""
        with self._used(call, op) as session:
            self._crypt(call, op, session)

    def _crypt(self, call: Call, op: Any, session: Session) -> None:
        memory = call.memory
        decrypt = _is_decryption(op)
        flags = op.flags
        if session.aead is not None:
            raise os_error(errno.EINVAL)
        if not flags or flags & COP_FLAG_RESET:
            session.reset_hash()
        cipher = session.cipher
        if cipher is not None:
            if op.len % cipher.spec.block_size:
                raise os_error(errno.EINVAL)
            if op.iv and cipher.spec.iv_size:
                session.iv = bytes(memory.read(op.iv, cipher.spec.iv_size))
        inbox, outbox = self.device.rooms(op.len)
        data = inbox[: op.len]
        memory.read_into(op.src, data)
        out = session.crypt(data, decrypt=decrypt, room=outbox) if cipher is not None else data
        # The hash is that of the plaintext.
        session.update_hash(out if decrypt else data)
        if cipher is not None:
            memory.write(op.dst, out)
            if op.iv and cipher.spec.iv_size and flags & COP_FLAG_WRITE_IV:
                memory.write(op.iv, session.iv)
        if session.hash_spec is not None and (flags & COP_FLAG_FINAL or not flags & COP_FLAG_UPDATE or not op.len):
            memory.write(op.mac, session.finish_hash())

    @ioctl(authcrypt_command(CryptAuthOp), CryptAuthOp)
    @ioctl(authcrypt_command(CryptAuthOp32), CryptAuthOp32)
    def authcrypt(self, call: Call, op: Any) -> None:
        """CIOCAUTHCRYPT."""
        with self._used(call, op) as session:
            self._authcrypt(call, op, session)

    def _authcrypt(self, call: Call, op: Any, session: Session) -> None:
        memory = call.memory
        decrypt = _is_decryption(op)
        cipher = session.aead or session.cipher
        flags = op.flags
        if cipher is None or (op.iv_len and op.iv_len != cipher.spec.iv_size):
            raise os_error(errno.EINVAL)
        op.tag_len = tag_size = session.tag_size(op.tag_len)
        if op.iv and cipher.spec.iv_size:
            session.iv = bytes(memory.read(op.iv, cipher.spec.iv_size))
        in_place = flags & (COP_FLAG_AEAD_TLS_TYPE | COP_FLAG_AEAD_SRTP_TYPE)
        if in_place and op.src != op.dst:
            raise os_error(errno.EINVAL)
        data, associated = memory.read(op.src, op.len), memory.read(op.auth_src, op.auth_len)
        if flags & COP_FLAG_AEAD_SRTP_TYPE:
            self._authcrypt_srtp(call, op, session, data, associated, decrypt=decrypt)
        elif flags & COP_FLAG_AEAD_TLS_TYPE:
            out = (
                session.open_tls(data, associated, tag_size)
                if decrypt
                else session.seal_tls(data, associated, tag_size)
            )
            memory.write(op.dst, out)
            op.len = len(out)
        else:
            out = session.open(data, associated, tag_size) if decrypt else session.seal(data, associated, tag_size)
            memory.write(op.dst, out)
            op.len = len(out)
            op.tag = op.dst + op.len - (0 if decrypt else tag_size)
        if op.iv and cipher.spec.iv_size and flags & COP_FLAG_WRITE_IV:
            memory.write(op.iv, session.iv)

    @staticmethod
    def _authcrypt_srtp(
        call: Call, op: Any, session: Session, data: bytearray, associated: bytearray, *, decrypt: bool
    ) -> None:
        """`associated` is the packet, `data` a part of it. The tag is that of the packet with this part encrypted."""
        begin = op.src - op.auth_src
        if session.cipher is None or not 0 <= begin <= begin + len(data) <= len(associated):
            raise os_error(errno.EINVAL)
        if decrypt:
            tag = bytes(call.memory.read(op.tag, op.tag_len))
            if not secrets.compare_digest(session.authenticate(associated, op.tag_len), tag):
                raise os_error(errno.EBADMSG)
            call.memory.write(op.dst, session.crypt(data, decrypt=True))
            return
        out = session.crypt(data, decrypt=False)
        associated[begin : begin + len(data)] = out
        tag = session.authenticate(associated, op.tag_len)
        call.memory.write(op.dst, out)
        call.memory.write(op.tag, tag)

    def release(self) -> None:
        for session in self._sessions.values():
            session.close()
        self._sessions.clear()


def _is_decryption(op: Any) -> bool:
    if op.op not in (COP_ENCRYPT, COP_DECRYPT):
        raise os_error(errno.EINVAL)
    return bool(op.op == COP_DECRYPT)


class _Device(CharDevice):
    file = _File

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        # Kept from call to call: new buffers would cost page faults in each.
        self._rooms = memoryview(bytearray(_ROOM)), memoryview(bytearray(_ROOM))

    def reopen(self, call: Call, remembered: Mapping[int, bytes]) -> DeviceFile:
        return _File(self, call, remembered)

    def rooms(self, size: int) -> tuple[memoryview, memoryview]:
        """Two buffers with room for `size` bytes and a block, for this call only. Raises OSError(EINVAL)."""
        if size > CallerMemory.LIMIT:
            raise os_error(errno.EINVAL)
        if size + BLOCK > _ROOM:
            return memoryview(bytearray(size + BLOCK)), memoryview(bytearray(size + BLOCK))
        return self._rooms


class Crypto(DeviceModule):
    """Ciphers and hashes by ioctl, as cryptodev-linux offers them."""

    name = "crypto"
    uses_caller_memory = True
    options = (choice("backend", _BACKENDS, LIBRARY.name, "who computes: the library, or the kernel (AF_ALG)"),)

    @classmethod
    def uses_kernel_crypto(cls, options: Mapping[str, Any]) -> bool:
        return bool(options["backend"] == KERNEL.name)

    @classmethod
    def keeps(cls, options: Mapping[str, Any]) -> int:
        return 0  # all of it belongs to open files

    def open_devices(self, mounting: Mounting) -> CharDevice:
        backend = _BACKENDS[mounting.options["backend"]]
        if backend is KERNEL and not is_available():
            raise MachineError(
                "cannot use the kernel's ciphers: it has no AF_ALG",
                remedy="load the module (modprobe af_alg), or leave backend= out",
            )
        return _Device(backend)
