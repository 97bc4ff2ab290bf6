"""The CUDA driver, as far as a worker needs it whatever its engine is: what a device is, and how much of its memory is free.

`libcuda.so.1` comes with the driver, so that this works without torch and whatever CUDA the engine brings along. Not used by
Python policies: they decide what they see of the devices before CUDA starts.
"""

from __future__ import annotations

import ctypes
from typing import Any, Final, NamedTuple

from pillion_worker.errors import DriverError

_LIBRARY: Final = "libcuda.so.1"
_KERNEL_MODULE: Final = "/proc/driver/nvidia/version"
_COMPUTE_MAJOR: Final = 75
_COMPUTE_MINOR: Final = 76
"""Of CUdevice_attribute."""
_NAME_BYTES: Final = 256
_PORTABLE: Final = 1
"""CU_MEMHOSTREGISTER_PORTABLE: page-locked for whichever context copies."""


class DeviceMemory(NamedTuple):
    """The memory of a device, of all processes."""

    free_bytes: int
    total_bytes: int


class CudaDriver:
    """One device of the driver. Shares the primary context of its process with the CUDA runtime, so that of any engine.

    Raises `DriverError` if there is no driver, or no such device.
    """

    def __init__(self, index: int, library: Any | None = None) -> None:
        self._library = _load() if library is None else library
        self._call("cuInit", 0)
        self._device = ctypes.c_int()
        self._call("cuDeviceGet", ctypes.byref(self._device), index)

    def name(self) -> str:
        """The name of the device, such as `NVIDIA H200`."""
        text = ctypes.create_string_buffer(_NAME_BYTES)
        self._call("cuDeviceGetName", text, _NAME_BYTES, self._device)
        return text.value.decode("utf-8", "replace")

    def compute_capability(self) -> str:
        """Its generation, such as `9.0`."""
        return ".".join(str(self._attribute(each)) for each in (_COMPUTE_MAJOR, _COMPUTE_MINOR))

    def driver(self) -> str:
        """The version of the driver: the CUDA that it can do, and its kernel module's own words."""
        version = ctypes.c_int()
        self._call("cuDriverGetVersion", ctypes.byref(version))
        try:
            with open(_KERNEL_MODULE) as file:
                return f"{version.value} {' '.join(file.readline().split())}"
        except OSError:
            # Some containers hide it.
            return str(version.value)

    def memory(self) -> DeviceMemory:
        """How much memory of the device is free now. The first call makes the context of this process there."""
        self._enter()
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return DeviceMemory(free.value, total.value)

    def register(self, address: int, size_bytes: int) -> bool:
        """Registers memory of the host as page-locked; returns whether the driver did. It must stay mapped from then on."""
        self._enter()
        register = self._library.cuMemHostRegister_v2
        return int(register(ctypes.c_void_p(address), ctypes.c_size_t(size_bytes), _PORTABLE)) == 0

    def _attribute(self, number: int) -> int:
        value = ctypes.c_int()
        self._call("cuDeviceGetAttribute", ctypes.byref(value), number, self._device)
        return value.value

    def _enter(self) -> None:
        context = ctypes.c_void_p()
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self._device)
        self._call("cuCtxSetCurrent", context)

    def _call(self, name: str, *arguments: Any) -> None:
        result = int(getattr(self._library, name)(*arguments))
        if result != 0:
            raise DriverError(f"the CUDA driver refuses {name}: error {result}")


def _load() -> Any:
    try:
        return ctypes.CDLL(_LIBRARY)
    except OSError:
        raise DriverError(f"there is no CUDA driver ({_LIBRARY})") from None
