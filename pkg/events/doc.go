// Package events posts Kubernetes Events: short notes about an object of the cluster,
// which kubectl describe shows beside it. It speaks to the API server with nothing but
// net/http and the service account that every pod has.
//
// Events are a courtesy. Nobody waits for one: [Poster.Post] only notes it, the notes are
// few and the oldest are kept, and a server that cannot be reached is tried again for a
// while and then not any more. Whoever needs to be sure reads logs and metrics.
//
// What Kubernetes does with them, as of 1.37, and what follows from it:
//
//   - kubectl describe finds an object's events by its UID. Of a claim it has to be asked
//     for; of a Node kubelet and kubectl use the name in its place.
//   - An event is in the namespace of its object, and in "default" for one that has none.
//   - It is kept for an hour. One that happens again within that time is the same object
//     with a higher count, changed by a patch.
//   - The token is replaced in its file about once an hour, and the certificates of the
//     authority now and then: both are read for every request.
package events
