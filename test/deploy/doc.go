// Package deploy tests the manifests in deploy/kubernetes without a cluster: it builds
// every kustomization, decodes each object strictly into its Go type, holds it against
// the schema that Kubernetes publishes, and checks what no schema knows: that names lead
// somewhere, that the driver and the sidecars have the flags that they are given, that
// rights are those that the sidecars document, and that only one container is privileged.
//
//	cd test/deploy && go test ./...
//
// What it compares with is read from where it is decided: this repository's sources and
// the modules of Kubernetes and the sidecars in the versions of their images, which the
// go command downloads once. Each check has mutations that it must catch, see
// mutations_test.go.
package deploy
