// Package sanity tests the real granary binary through its CSI socket, on real FUSE,
// loop devices and mounts. It is a module of its own, so that csi-sanity's Ginkgo
// stays out of the product's.
//
// TestSpecs runs all specs of csi-sanity for volumes with ext4, xfs and btrfs and for
// raw block volumes, in random order. Which specs are skipped is an exact list
// (skips_test.go): a spec that is skipped without being listed fails, and so does one
// that is listed and not skipped. After each run nothing may be left of it: no mount,
// device, directory, volume or snapshot, no file descriptor or goroutine in the daemon,
// no damage in the store, and no secret in the log (audit_test.go).
//
// csi-sanity never looks at data. The other tests do: they compare every byte after
// clone, restore, growth, restage, republish, read-only use and the death of the daemon.
//
// They need root, /dev/fuse and loop devices; without them they are skipped, and with
// GRANARY_DEVICE_TESTS=require in the environment they fail instead. Further switches:
//
//	GRANARY_SANITY_BINARY=path  tests another binary than the one built from here
//	GRANARY_DEVICE_RACE=0           builds that one without the race detector
//	GRANARY_SANITY_REPEAT=n     runs the specs n times for each kind of volume (default 3)
//	GRANARY_SEED=n              repeats the order of specs and the data of a run
//	GRANARY_WORKDIR=dir         keeps stores and mounts below dir (default /var/tmp)
package sanity
