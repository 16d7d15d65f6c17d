// Package kubelet is what kubelet wants of a node plugin besides CSI: a socket to
// register by, and an HTTP address to ask whether the plugin lives. With it a pod
// needs neither of the sidecars node-driver-registrar and livenessprobe.
//
// What kubelet does, as of Kubernetes 1.37, and what follows from it:
//
//   - It watches its registration directory and takes every socket below it for a
//     plugin, whatever the name, unless the name begins with a dot. A socket that is
//     moved away is not forgotten, only one that is removed. So a socket is made
//     under a name with a dot and renamed when it answers ([Registration.Listen]).
//   - Once a second it looks for sockets that are new or were made anew; from each
//     it asks GetInfo (limit one second), validates the versions (none above 1.x
//     counts, one must parse), calls NodeGetInfo on the endpoint (limit two
//     minutes), writes the CSINode object and says NotifyRegistrationStatus (limit
//     five seconds). So CSI has to be served before the registration is.
//   - The endpoint is dialed as it stands: a plain path in kubelet's own file
//     system, not a URL. It is not validated.
//   - What fails is tried again after 0.5 s, then ever later up to about two
//     minutes, for as long as the socket is there. So a failure is a state to report
//     and no reason to exit.
//   - A removed socket takes the driver out of the CSINode object: kubelet mounts
//     and unmounts nothing more of it, and no pod with a new volume is scheduled
//     here. The plugin is not told. A killed plugin's socket stays and leaves it
//     registered; calls fail until there is a successor.
//   - Two sockets with the same driver and version are one too many: the second is
//     refused. A socket made anew under the same path replaces the first.
//   - A restarted kubelet registers what it finds in the directory.
package kubelet
