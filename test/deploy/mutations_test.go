package deploy

import (
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"testing"
)

// mutation is damage that a check has to see.
type mutation struct {
	check  string
	object string // kind/name
	path   string // of the field, see change
	value  any    // nil removes it
	want   string // part of what the check says
}

const (
	node       = "DaemonSet/granary-node"
	controller = "Deployment/granary-controller"
	driverPod  = "spec template spec containers granary "
)

var mutations = []mutation{
	{"schema", node, "spec selector", nil, "selector is required"},
	{"schema", node, driverPod + "volumeMounts dev mountPath", nil, "mountPath is required"},
	{"schema", "StorageClass/granary", "provisioner", nil, "provisioner is required"},
	{"schema", "ClusterRoleBinding/granary-attacher", "roleRef", nil, "roleRef is required"},
	{"schema", "VolumeSnapshotClass/granary", "deletionPolicy", nil, "deletionPolicy is required"},
	{"schema", "VolumeSnapshotClass/granary", "deletionPolicy", "Keep", "Keep is not one of"},
	{"schema", "VolumeSnapshot/data-snapshot", "spec source", nil, "source is required"},
	{"schema", "CSIDriver/granary.csi.k8ns.io", "spec", nil, "spec is required"},
	{"enums", "CSIDriver/granary.csi.k8ns.io", "spec fsGroupPolicy", "Files", `"Files" is not one of`},
	{"enums", node, "spec updateStrategy type", "OnDeletion", `"OnDeletion" is not one of`},
	{"enums", node, "spec template spec volumes dev hostPath type", "Dir", `"Dir" is not one of`},
	{"enums", node, driverPod + "volumeMounts kubelet mountPropagation", "Both", `"Both" is not one of`},
	{"enums", "StorageClass/granary", "volumeBindingMode", "Late", `"Late" is not one of`},
	{"enums", "PersistentVolumeClaim/archive", "spec accessModes 0", "ReadMany", `"ReadMany" is not one of`},
	{"names", "ServiceAccount/granary-node", "metadata name", "granary_node", "lower case alphanumeric"},
	{"names", "ServiceAccount/granary-node", "metadata namespace", "granary", `"granary" does not exist`},
	{"names", "ServiceAccount/granary-node", "metadata namespace", nil, `"" does not exist`},
	{"names", "StorageClass/granary", "metadata namespace", "granary-system", "this kind has none"},
	{"names", "StorageClass/granary", "metadata labels app.kubernetes.io/component", "storage class", "label"},
	{"names", "Pod/data", "metadata namespace", "default", "leaves it to the user"},
	{"labels", controller, "metadata labels app.kubernetes.io/component", nil, "component is missing"},
	{"labels", node, "spec template metadata labels app.kubernetes.io/part-of", nil, "pods: label app.kubernetes.io/part-of"},
	{"selectors", node, "spec selector matchLabels app.kubernetes.io/component", "nodes", "selector finds pods of []"},
	{"selectors", node, "spec selector matchLabels app.kubernetes.io/component", nil, "Deployment/granary-controller"},
	{"selectors", controller, "spec template spec topologySpreadConstraints 0 labelSelector matchLabels app.kubernetes.io/component", "node", "spread finds pods"},
	{"selectors", controller, "spec template spec affinity podAffinity requiredDuringSchedulingIgnoredDuringExecution 0 labelSelector matchLabels app.kubernetes.io/component", "driver", "affinity finds pods of []"},
	{"selectors", "PodDisruptionBudget/granary-controller", "spec selector matchLabels app.kubernetes.io/name", "granite", "selector finds pods of []"},
	{"accounts", node, "spec template spec serviceAccountName", "granary-nodes", `"granary-nodes" does not exist`},
	{"accounts", controller, "spec template spec serviceAccountName", nil, `account "" does not exist`},
	{"accounts", "ClusterRoleBinding/granary-resizer", "roleRef name", "granary-sizer", `"granary-sizer" does not exist`},
	{"accounts", "RoleBinding/granary-provisioner", "roleRef kind", "ClusterRole", "Role/granary-provisioner: nobody uses it"},
	{"accounts", "RoleBinding/granary-provisioner", "subjects 0 name", "granary", `"granary" in "granary-system" does not exist`},
	{"accounts", "RoleBinding/granary-provisioner", "subjects 0 namespace", "default", `in "default" does not exist`},
	{"accounts", "ClusterRole/granary-snapshotter", "metadata name", "granary-other", "ClusterRole/granary-other: nobody uses it"},
	{"rights", "ClusterRole/granary-attacher", "rules 0 verbs 3", "update", `"/persistentvolumes update"`},
	{"rights", "ClusterRole/granary-attacher", "rules 0 resources 0", "*", `"/* get"`},
	{"rights", "ClusterRole/granary-resizer", "rules 2", nil, `"/persistentvolumeclaims/status patch": granted false`},
	{"rights", "ClusterRole/granary-resizer", "rules 1 resources 0", "pods", `"/pods list": granted true, withheld true`},
	{"rights", "Role/granary-provisioner", "rules 1", nil, `"/pods get": granted false`},
	{"rights", "ClusterRole/granary-snapshotter", "rules 1 apiGroups 0", "groupsnapshot.storage.k8s.io", "not among what it documents"},
	{"rights", controller, "spec template spec containers resizer image", "example.org/csi-sizer:v1", "is not in this test's tables"},
	{"driver rights", "ClusterRole/granary-driver", "rules 0 verbs 1", "update", `"/events patch" is missing`},
	{"driver rights", "ClusterRole/granary-driver", "rules 1 resources 0", "secrets", `"/secrets get" is not needed`},
	{"driver rights", "ClusterRoleBinding/granary-driver", "subjects 0 name", "granary-controller", "does not have granary-driver"},
	{"driver rights", node, "spec template spec automountServiceAccountToken", false, "no token"},
	{"leases", "Role/granary-leader-election", "rules 1 resourceNames 0", "external-attacher-granary", "may be written"},
	{"leases", "Role/granary-leader-election", "rules 1 resourceNames", nil, "of any lease"},
	{"volumes", node, driverPod + "volumeMounts dev name", "device", "volume device, which does not exist"},
	{"volumes", node, driverPod + "volumeMounts dev", nil, "nobody mounts volume dev"},
	{"volumes", node, driverPod + "volumeMounts dev mountPath", "/csi", "there twice"},
	{"volumes", "Pod/data", "spec volumes data persistentVolumeClaim claimName", "date", "claim date does not exist"},
	{"volumes", "Pod/data", "spec volumes data", map[string]any{"name": "data", "configMap": map[string]any{"name": "x"}}, "config map x does not exist"},
	{"volumes", "Pod/raw", "spec containers main volumeDevices data name", "date", "volume date, which does not exist"},
	{"claims", "PersistentVolumeClaim/data", "spec storageClassName", "granite", "storage class does not exist"},
	{"claims", "PersistentVolumeClaim/restored", "spec dataSource name", "snapshot", "source does not exist"},
	{"claims", "PersistentVolumeClaim/restored", "spec dataSource apiGroup", nil, "source does not exist"},
	{"claims", "PersistentVolumeClaim/clone", "spec dataSource kind", "VolumeSnapshot", "source does not exist"},
	{"claims", "PersistentVolumeClaim/clone", "spec dataSource name", "raw", "another volume mode"},
	{"claims", "PersistentVolumeClaim/clone", "spec resources requests storage", "1G", "smaller than its source"},
	{"claims", "VolumeSnapshot/data-snapshot", "spec volumeSnapshotClassName", "granite", "class does not exist"},
	{"claims", "VolumeSnapshot/data-snapshot", "spec source persistentVolumeClaimName", "date", "source does not exist"},
	{"driver name", "CSIDriver/granary.csi.k8ns.io", "metadata name", "granary.k8ns.io", "the driver is"},
	{"driver name", "StorageClass/granary", "provisioner", "granary", "the driver is"},
	{"driver name", "VolumeSnapshotClass/granary", "driver", "granary", "the driver is"},
	{"driver name", controller, "spec template spec volumes socket hostPath path", "/var/lib/kubelet/plugins/granary", "the driver is"},
	{"driver name", node, driverPod + "args --kubelet-endpoint", "--kubelet-endpoint=/var/lib/kubelet/plugins/granary/csi.sock", "the driver is"},
	{"parameters", "StorageClass/granary", "parameters comprehension", "zstd", "comprehension is not known"},
	{"parameters", "StorageClass/granary", "parameters csi.storage.k8s.io/fstype", "ext5", `"ext5" is not one of`},
	{"parameters", "StorageClass/granary", "parameters blockSize", "1024", `"1024" is not one of`},
	{"parameters", "VolumeSnapshotClass/granary", "parameters x", "y", "takes no parameters"},
	{"granary flags", node, driverPod + "args --log-level", "--verbosity=info", "no --verbosity"},
	{"granary flags", node, driverPod + "args --log-level", "--data-dir=/var/lib/granary", "each once"},
	{"granary flags", node, driverPod + "args serve", "server", "want serve"},
	{"sidecar flags", node, "spec template spec containers provisioner args --strict-topology", "--very-strict-topology", "csi-provisioner has no --very-strict-topology"},
	{"sidecar flags", node, "spec template spec containers snapshotter args --node-deployment", "--per-node", "csi-snapshotter has no --per-node"},
	{"sidecar flags", node, "spec template spec containers provisioner args --feature-gates", "--feature-gates=Topologie=true", "no feature gate Topologie"},
	{"sidecar flags", controller, "spec template spec containers attacher args --leader-election", "-leader-election", "want --flags"},
	{"environment", node, driverPod + "env NODE_NAME", nil, "NODE_NAME is"},
	{"environment", node, "spec template spec containers snapshotter env NODE_NAME valueFrom fieldRef fieldPath", "metadata.name", "NODE_NAME is"},
	{"environment", node, "spec template spec containers provisioner env POD_NAME", nil, "POD_NAME is"},
	{"election", controller, "spec template spec containers attacher args --leader-election", nil, "elected false"},
	{"election", node, "spec template spec containers provisioner args --node-deployment", "--leader-election", "elected true"},
	{"election", node, "spec template spec containers provisioner args --capacity-ownerref-level", "--capacity-ownerref-level=2", "level 1"},
	{"election", controller, "spec template spec containers attacher args --reconcile-sync", nil, "--reconcile-sync"},
	{"ports", node, driverPod + "ports healthz containerPort", 9809.0, "--http-endpoint=:9808 is none"},
	{"ports", node, driverPod + "livenessProbe httpGet port", "health", "port health, which it does not have"},
	{"ports", node, driverPod + "readinessProbe", nil, "no readiness probe"},
	{"ports", node, "spec template spec containers provisioner ports provisioner containerPort", 9808.0, "port 9808 twice"},
	{"ports", controller, "spec template spec containers resizer ports resizer name", "the-resizers-own-port", "must be no more than 15 characters"},
	{"confinement", node, driverPod + "securityContext privileged", false, "has to be privileged"},
	{"confinement", node, "spec template spec containers snapshotter securityContext privileged", true, "container snapshotter: privileged"},
	{"confinement", node, "spec template spec hostNetwork", true, "shares namespaces"},
	{"confinement", node, "spec template spec containers provisioner securityContext capabilities drop", nil, "capabilities"},
	{"confinement", node, "spec template spec containers provisioner securityContext capabilities add", []any{"SYS_ADMIN"}, "capabilities"},
	{"confinement", controller, "spec template spec containers attacher securityContext allowPrivilegeEscalation", nil, "allowPrivilegeEscalation"},
	{"confinement", controller, "spec template spec containers attacher securityContext readOnlyRootFilesystem", false, "readOnlyRootFilesystem"},
	{"confinement", controller, "spec template spec containers attacher securityContext seccompProfile", nil, "seccomp"},
	{"confinement", controller, "spec template spec containers attacher securityContext seLinuxOptions", nil, "SELinux"},
	{"confinement", controller, "spec template spec containers attacher securityContext runAsUser", 1000.0, "not root"},
	{"confinement", controller, "spec template spec containers attacher volumeMounts socket readOnly", nil, "or writable"},
	{"confinement", "Pod/data", "spec securityContext runAsNonRoot", false, "runAsNonRoot"},
	{"confinement", "Pod/data", "spec volumes data", map[string]any{"name": "data", "hostPath": map[string]any{"path": "/"}}, "claims only"},
	{"host paths", node, "spec template spec volumes dev hostPath path", "/", "host paths"},
	{"host paths", node, "spec template spec volumes selinux hostPath type", nil, "host paths"},
	{"host paths", node, "spec template spec volumes sys-fs hostPath path", "/sys/fs/selinux", "host paths"},
	{"host paths", controller, "spec template spec volumes data", map[string]any{"name": "data", "hostPath": map[string]any{"path": "/var/lib/granary"}}, "host paths"},
	{"wiring", node, driverPod + "args --endpoint", "--endpoint=unix:///run/csi.sock", "--endpoint is"},
	{"wiring", node, driverPod + "args --endpoint", "--endpoint=/csi/csi.sock", "is not unix://"},
	{"wiring", node, driverPod + "args --registration-dir", "--registration-dir=/csi", "kubelet looks elsewhere"},
	{"wiring", node, driverPod + "args --data-dir", "--data-dir=/data", "--data-dir is"},
	{"wiring", node, driverPod + "args --node-id", "--node-id=node-1", "has to be the node's name"},
	{"wiring", node, driverPod + "volumeMounts kubelet mountPropagation", "HostToContainer", "mount propagation is not"},
	{"wiring", node, driverPod + "volumeMounts kubelet mountPath", "/kubelet", "is not at /var/lib/kubelet"},
	{"wiring", node, driverPod + "volumeMounts sys-fs readOnly", true, "only if it is writable"},
	{"wiring", node, driverPod + "terminationMessagePath", nil, "lies in the host's /dev"},
	{"wiring", controller, "spec template spec containers attacher args --csi-address", "--csi-address=/csi/sock", "the driver's socket is"},
	{"lifetime", node, "spec updateStrategy type", "RollingUpdate", "rolling update"},
	{"lifetime", node, "spec updateStrategy", nil, "rolling update"},
	{"lifetime", node, "spec template spec priorityClassName", nil, "evicted"},
	{"lifetime", node, "spec template spec tolerations 0 effect", "NoSchedule", "a taint"},
	{"lifetime", node, "spec template spec terminationGracePeriodSeconds", 30.0, "terminationGracePeriodSeconds"},
	{"lifetime", node, driverPod + "resources limits", map[string]any{"memory": "1Gi"}, "reaching a limit"},
	{"lifetime", node, driverPod + "resources requests memory", nil, "requests nothing"},
	{"lifetime", node, driverPod + "livenessProbe failureThreshold", 3.0, "less than five minutes"},
	{"lifetime", node, driverPod + "startupProbe", nil, "while it recovers"},
	{"lifetime", controller, "spec replicas", 1.0, "one drain"},
	{"lifetime", "PodDisruptionBudget/granary-controller", "spec maxUnavailable", 2.0, "one drain"},
	// Strict decoding.
	{"decode", node, "spec template spec tolerationz", []any{}, "unknown field"},
	{"decode", "VolumeSnapshotClass/granary", "deletionPolice", "Delete", "unknown field"},
	{"decode", node, driverPod + "resources requests memory", "lots", "quantities must match"},
}

// TestChecksSee: every check sees the damage that it is there for, and each has some.
func TestChecksSee(t *testing.T) {
	f := readFacts(t)
	damaged := map[string]bool{}
	raws := builds(t)["all with examples"]
	for _, m := range mutations {
		damaged[m.check] = true
		t.Run(fmt.Sprintf("%s/%s %s", m.check, m.object, m.path), func(t *testing.T) {
			var changed []rawObject
			found := false
			for _, raw := range raws {
				fields := roundTrip(t, raw.fields)
				if fmt.Sprintf("%v/%v", fields["kind"], dig(fields, "metadata", "name")) == m.object {
					found = true
					fields = change(t, fields, strings.Fields(m.path), m.value).(map[string]any)
					if reflect.DeepEqual(fields, raw.fields) {
						t.Fatal("the mutation changes nothing")
					}
				}
				changed = append(changed, rawObject{fields, raw.sample})
			}
			if !found {
				t.Fatalf("there is no %s", m.object)
			}
			s, err := newSet(changed, f)
			if m.check == "decode" {
				if err == nil || !strings.Contains(err.Error(), m.want) {
					t.Fatalf("decoded: %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range checks {
				if c.name != m.check {
					continue
				}
				problems := c.run(s)
				if !strings.Contains(strings.Join(problems, "\n"), m.want) {
					t.Errorf("not seen; the check says %q", problems)
				}
				return
			}
			t.Errorf("there is no check %q", m.check)
		})
	}
	for _, c := range checks {
		if !damaged[c.name] {
			t.Errorf("check %q: no mutation shows that it can fail", c.name)
		}
	}
}

// change sets or removes (nil) what a path leads to, and returns the changed value. In
// lists a step is an index, the name of an element, or the beginning of a string.
func change(t *testing.T, at any, path []string, value any) any {
	t.Helper()
	step, rest := path[0], path[1:]
	switch at := at.(type) {
	case nil:
		return map[string]any{step: last(t, nil, rest, value)}
	case map[string]any:
		if at[step] = last(t, at[step], rest, value); at[step] == nil {
			delete(at, step)
		}
		return at
	case []any:
		for i, element := range at {
			text, _ := element.(string)
			name, _, _ := strings.Cut(text, "=")
			if strconv.Itoa(i) != step && dig(element, "name") != step && name != step {
				continue
			}
			if at[i] = last(t, element, rest, value); at[i] == nil {
				return append(at[:i], at[i+1:]...)
			}
			return at
		}
		if len(rest) == 0 && value != nil {
			return append(at, value)
		}
	}
	t.Fatalf("the path ends at %q", step)
	return nil
}

func last(t *testing.T, at any, rest []string, value any) any {
	t.Helper()
	if len(rest) == 0 {
		return value
	}
	return change(t, at, rest, value)
}
