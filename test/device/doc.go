// Package device tests the real granary binary on real block devices: fio with
// verification, random operations against a model, ext4 and xfs with their checkers,
// the death of the daemon at any moment, and over the CSI socket many callers at once and
// that mkfs never runs over data, with a stand-in for mkfs that tests can stop. It needs
// root, /dev/fuse and loop devices; without them its tests are skipped, and with
// GRANARY_DEVICE_TESTS=require in the environment they fail instead.
//
// GRANARY_SEED=n repeats a run of random operations or calls, GRANARY_DEVICE_SECONDS=n
// makes each run of operations n seconds long, GRANARY_DEVICE_CALLS=n makes n concurrent
// calls, GRANARY_DEVICE_RACE=0 builds the binary without the race detector,
// GRANARY_DEVICE_BINARY=path tests another binary. Everything that a test makes is taken
// away when it ends, also after a failure; a test that hangs has its daemon killed at its
// time limit.
package device
