// Lets a PyTorch built for CPUs differentiate fake tensors on a device "cuda".
//
// FakeTensorMode needs no GPU, but autograd asks the device for its streams and events, and PyTorch for its
// accelerator; a build without CUDA has neither. Here is one device on which nothing ever happens.

#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <cstring>

namespace c10::impl {

struct Nowhere final : NoOpDeviceGuardImpl<DeviceType::CUDA> {
  static Device first() { return Device(DeviceType::CUDA, 0); }
  static Stream stream() { return Stream(Stream::DEFAULT, first()); }

  Device exchangeDevice(Device) const override { return first(); }
  Device getDevice() const override { return first(); }
  Stream getStream(Device) const noexcept override { return stream(); }
  Stream getNewStream(Device, int) const override { return stream(); }
  Stream exchangeStream(Stream) const noexcept override { return stream(); }
  void record(void**, const Stream&, DeviceIndex, EventFlag) const override {}
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, DeviceIndex) const noexcept override {}
};

C10_REGISTER_GUARD_IMPL(CUDA, Nowhere)

}  // namespace c10::impl

namespace {

struct Present : at::CUDAHooksInterface {
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return false; }
  c10::DeviceIndex deviceCount() const override { return 1; }
};

const Present present;

// The hooks were chosen when PyTorch was loaded; only their methods can still be exchanged.
const bool exchanged = [] {
  std::memcpy((void*)&at::detail::getCUDAHooks(), (const void*)&present, sizeof(void*));
  return true;
}();

}  // namespace
