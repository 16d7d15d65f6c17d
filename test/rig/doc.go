// Package rig drives a real granary daemon from the outside, for the demo, the
// tests on real devices and the benchmark: a daemon in a directory of its own, its
// commands, mounts and loop devices, sample data that every machine has, and
// writers whose records show afterwards what survived.
//
// Everything that it makes on the machine is noted in a Cleanup at once, and only
// what is noted there is ever unmounted, detached or killed. It imports none of
// granary's packages: what it knows of the product is the command line.
package rig
