package deploy

import (
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
)

// check finds what is wrong with a set. Every check has mutations that it catches.
type check struct {
	name string
	run  func(*set) []string
}

var checks = []check{
	{"schema", checkSchema},
	{"enums", checkEnums},
	{"names", checkNames},
	{"labels", checkLabels},
	{"selectors", checkSelectors},
	{"accounts", checkAccounts},
	{"rights", checkRights},
	{"driver rights", checkDriverRights},
	{"leases", checkLeases},
	{"volumes", checkVolumes},
	{"claims", checkClaims},
	{"driver name", checkDriverName},
	{"parameters", checkParameters},
	{"granary flags", checkGranaryFlags},
	{"sidecar flags", checkSidecarFlags},
	{"environment", checkEnvironment},
	{"election", checkElection},
	{"ports", checkPorts},
	{"confinement", checkConfinement},
	{"host paths", checkHostPaths},
	{"wiring", checkWiring},
	{"lifetime", checkLifetime},
}

// granary is the one container that may do anything.
const granary = "granary"

func isDriver(w workload, c corev1.Container) bool {
	return w.kind == "DaemonSet" && c.Name == granary
}

// imageName is registry/path/NAME:version.
func imageName(image string) string {
	name, _, _ := strings.Cut(path.Base(image), ":")
	return name
}

// flags reads --name=value arguments; a flag alone has the value "true".
func flags(c corev1.Container) map[string]string {
	out := map[string]string{}
	for _, arg := range c.Args {
		if name, ok := strings.CutPrefix(arg, "--"); ok {
			name, value, found := strings.Cut(name, "=")
			if !found {
				value = "true"
			}
			out[name] = value
		}
	}
	return out
}

// sidecarsOf calls f for every container that runs a sidecar.
func sidecarsOf(s *set, f func(w workload, c corev1.Container, name string)) {
	for _, w := range s.workloads() {
		for _, c := range w.containers() {
			if !w.sample && !isDriver(w, c) {
				f(w, c, imageName(c.Image))
			}
		}
	}
}

// checkNames: valid names, labels and namespaces, all in the one namespace.
func checkNames(s *set) (problems []string) {
	for _, o := range s.objects {
		add := func(what string, found []string) {
			for _, f := range found {
				problems = append(problems, fmt.Sprintf("%s: %s: %s", o, what, f))
			}
		}
		add("name", validation.IsDNS1123Subdomain(o.meta.GetName()))
		for key, value := range o.meta.GetLabels() {
			add("label "+key, append(validation.IsQualifiedName(key), validation.IsValidLabelValue(value)...))
		}
		inOne, known := namespaced[o.kind]
		namespace := o.meta.GetNamespace()
		switch {
		case !known:
			add("kind", []string{"is not in this test's table"})
		case !inOne && namespace != "":
			add("namespace", []string{"this kind has none"})
		case inOne && o.sample && namespace != "":
			add("namespace", []string{"an example leaves it to the user"})
		case inOne && !o.sample && !s.has("Namespace", namespace):
			add("namespace", []string{fmt.Sprintf("%q does not exist", namespace)})
		}
	}
	return problems
}

// checkLabels: what the objects of an installation are found by.
func checkLabels(s *set) (problems []string) {
	want := func(o *object, where string, found map[string]string) {
		for _, key := range []string{"name", "part-of", "component"} {
			if found["app.kubernetes.io/"+key] == "" {
				problems = append(problems, fmt.Sprintf("%s: %s: label app.kubernetes.io/%s is missing", o, where, key))
			}
		}
	}
	for _, o := range s.objects {
		if !o.sample {
			want(o, "metadata", o.meta.GetLabels())
		}
	}
	for _, w := range s.workloads() {
		if !w.sample {
			want(w.object, "pods", w.labels)
		}
	}
	return problems
}

// checkSelectors: workloads select their own pods and no others; whatever else selects
// pods finds some.
func checkSelectors(s *set) (problems []string) {
	matches := func(selector *metav1.LabelSelector) (found []string) {
		parsed, err := metav1.LabelSelectorAsSelector(selector)
		if err != nil || parsed.Empty() {
			return []string{"everything, or it is wrong"}
		}
		for _, w := range s.workloads() {
			if parsed.Matches(labels.Set(w.labels)) {
				found = append(found, w.String())
			}
		}
		return found
	}
	one := func(o fmt.Stringer, what string, selector *metav1.LabelSelector, want string) {
		if found := matches(selector); len(found) != 1 || want != "" && found[0] != want {
			problems = append(problems, fmt.Sprintf("%s: %s finds pods of %q, it has to be exactly one%s", o, what, found, strings.TrimSuffix(": "+want, ": ")))
		}
	}
	for _, w := range s.workloads() {
		if w.selector != nil {
			one(w, "selector", w.selector, w.String())
		}
		for _, c := range w.pod.TopologySpreadConstraints {
			one(w, "spread", c.LabelSelector, w.String())
		}
		if w.pod.Affinity != nil && w.pod.Affinity.PodAffinity != nil {
			for _, t := range w.pod.Affinity.PodAffinity.RequiredDuringSchedulingIgnoredDuringExecution {
				one(w, "affinity", t.LabelSelector, "")
			}
		}
	}
	for _, b := range all[*policyv1.PodDisruptionBudget](s) {
		one(stringer("PodDisruptionBudget/"+b.Name), "selector", b.Spec.Selector, "")
	}
	return problems
}

type stringer string

func (s stringer) String() string { return string(s) }

// checkAccounts: service accounts, roles and bindings lead to each other, and none is
// left over.
func checkAccounts(s *set) (problems []string) {
	used := map[string]bool{}
	for _, w := range s.workloads() {
		if w.sample {
			continue
		}
		account := "ServiceAccount/" + w.pod.ServiceAccountName
		used[account] = true
		if !s.has("ServiceAccount", w.pod.ServiceAccountName) {
			problems = append(problems, fmt.Sprintf("%s: service account %q does not exist", w, w.pod.ServiceAccountName))
		}
	}
	bound := func(binding string, ref rbacv1.RoleRef, subjects []rbacv1.Subject) {
		used[ref.Kind+"/"+ref.Name] = true
		if !s.has(ref.Kind, ref.Name) {
			problems = append(problems, fmt.Sprintf("%s: %s %q does not exist", binding, ref.Kind, ref.Name))
		}
		if len(subjects) == 0 {
			problems = append(problems, binding+": no subjects")
		}
		for _, subject := range subjects {
			if subject.Kind != "ServiceAccount" || !s.has("ServiceAccount", subject.Name) || !s.has("Namespace", subject.Namespace) {
				problems = append(problems, fmt.Sprintf("%s: %s %q in %q does not exist", binding, subject.Kind, subject.Name, subject.Namespace))
			}
		}
	}
	for _, b := range all[*rbacv1.ClusterRoleBinding](s) {
		bound("ClusterRoleBinding/"+b.Name, b.RoleRef, b.Subjects)
	}
	for _, b := range all[*rbacv1.RoleBinding](s) {
		bound("RoleBinding/"+b.Name, b.RoleRef, b.Subjects)
	}
	for _, o := range s.objects {
		if slices.Contains([]string{"ServiceAccount", "ClusterRole", "Role"}, o.kind) && !used[o.String()] {
			problems = append(problems, fmt.Sprintf("%s: nobody uses it", o))
		}
	}
	return problems
}

// rights flattens rules to "group/resource verb".
func rights(rules []rbacv1.PolicyRule) map[string]bool {
	out := map[string]bool{}
	for _, r := range rules {
		for _, g := range r.APIGroups {
			for _, resource := range r.Resources {
				for _, verb := range r.Verbs {
					out[g+"/"+resource+" "+verb] = true
				}
			}
		}
	}
	return out
}

// rolesOf are the roles that make up a sidecar's rights.
var rolesOf = map[string][]string{
	"csi-attacher":    {"granary-attacher", "granary-leader-election"},
	"csi-provisioner": {"granary-provisioner", "granary-provisioner-snapshots"},
	"csi-resizer":     {"granary-resizer", "granary-leader-election"},
	"csi-snapshotter": {"granary-snapshotter"},
}

// withheld are documented rights that a sidecar gets by without here, as patterns; the
// reasons are in the manifests. A right that a new version documents is a problem until
// it is granted or listed here.
var withheld = map[string][]string{
	"": { // of every sidecar
		`/events (list|watch|update)`, // its recorder creates and patches
		`coordination.k8s.io/leases (list|watch|delete)`,
	},
	"csi-provisioner": {
		`/nodes .*`, `storage.k8s.io/csinodes .*`, `coordination.k8s.io/leases .*`, `apps/replicasets .*`,
		`storage.k8s.io/csistoragecapacities (get|patch)`,
		`snapshot.storage.k8s.io/volumesnapshotcontents list`,
	},
	"csi-resizer": {`/pods .*`, `storage.k8s.io/volumeattributesclasses .*`},
	"csi-snapshotter": {
		`coordination.k8s.io/leases .*`, `groupsnapshot.storage.k8s.io/.*`,
		`snapshot.storage.k8s.io/volumesnapshotcontents update`,
	},
}

// driverRights are what pkg/events asks the API server for.
var driverRights = map[string]bool{
	"/events create": true, "/events patch": true, // a note, and that it happened again
	"/persistentvolumeclaims get": true, // the UID that kubectl finds a claim's notes by
}

// checkDriverRights: the driver has a role of its own with these rights and no others, and
// gets the token that they go with.
func checkDriverRights(s *set) (problems []string) {
	const role = "granary-driver"
	have := map[string]bool{}
	for _, r := range all[*rbacv1.ClusterRole](s) {
		if r.Name == role {
			have = rights(r.Rules)
		}
	}
	for right := range have {
		if !driverRights[right] {
			problems = append(problems, fmt.Sprintf("%s: %q is not needed", role, right))
		}
	}
	for right := range driverRights {
		if !have[right] {
			problems = append(problems, fmt.Sprintf("%s: %q is missing", role, right))
		}
	}
	for _, w := range s.workloads() {
		if !slices.ContainsFunc(w.pod.Containers, func(c corev1.Container) bool { return isDriver(w, c) }) {
			continue
		}
		if mount := w.pod.AutomountServiceAccountToken; mount != nil && !*mount {
			problems = append(problems, fmt.Sprintf("%s: no token: the driver could not post events", w))
		}
		bound := func(b *rbacv1.ClusterRoleBinding) bool {
			return b.RoleRef.Name == role && slices.ContainsFunc(b.Subjects, func(subject rbacv1.Subject) bool {
				return subject.Kind == "ServiceAccount" && subject.Name == w.pod.ServiceAccountName
			})
		}
		if !slices.ContainsFunc(all[*rbacv1.ClusterRoleBinding](s), bound) {
			problems = append(problems, fmt.Sprintf("%s: account %s does not have %s", w, w.pod.ServiceAccountName, role))
		}
	}
	return problems
}

// checkRights: a sidecar has the rights that its version documents, less withheld.
func checkRights(s *set) (problems []string) {
	granted := map[string]map[string]bool{}
	grant := func(role string, rules []rbacv1.PolicyRule) {
		if granted[role] == nil {
			granted[role] = map[string]bool{}
		}
		maps.Copy(granted[role], rights(rules))
	}
	for _, r := range all[*rbacv1.ClusterRole](s) {
		grant(r.Name, r.Rules)
	}
	for _, r := range all[*rbacv1.Role](s) {
		grant(r.Name, r.Rules)
	}
	sidecarsOf(s, func(w workload, c corev1.Container, name string) {
		upstream := s.facts.sidecars[name]
		if upstream == nil {
			problems = append(problems, fmt.Sprintf("%s: image %s is not in this test's tables", w, c.Image))
			return
		}
		have := map[string]bool{}
		for _, role := range rolesOf[name] {
			maps.Copy(have, granted[role])
		}
		for right := range have {
			if !upstream.rights[right] {
				problems = append(problems, fmt.Sprintf("%s: may %q, which is not among what it documents", c.Name, right))
			}
		}
		for right := range upstream.rights {
			without := slices.ContainsFunc(append(withheld[""], withheld[name]...), func(pattern string) bool {
				return regexp.MustCompile("^" + pattern + "$").MatchString(right)
			})
			if strings.HasPrefix(right, "snapshot.storage.k8s.io/") && !s.has("VolumeSnapshotClass", granary) {
				continue
			}
			if without == have[right] {
				problems = append(problems, fmt.Sprintf("%s: right %q: granted %v, withheld %v", c.Name, right, have[right], without))
			}
		}
	})
	return problems
}

// checkLeases: the leases that may be written are those that the sidecars use.
func checkLeases(s *set) (problems []string) {
	prefixes := map[string]string{"csi-attacher": "external-attacher-leader-", "csi-resizer": "external-resizer-"}
	var want []string
	sidecarsOf(s, func(w workload, c corev1.Container, name string) {
		if flags(c)["leader-election"] == "" {
			return
		}
		prefix := prefixes[name]
		if prefix == "" || !strings.Contains(s.facts.sidecars[name].source, `"`+prefix+`"`) {
			problems = append(problems, fmt.Sprintf("%s: its lease does not begin with %q (any more)", c.Name, prefix))
		}
		want = append(want, prefix+strings.ReplaceAll(s.facts.driver, ".", "-"))
	})
	var have []string
	for _, r := range all[*rbacv1.Role](s) {
		for _, rule := range r.Rules {
			if !slices.Contains(rule.Resources, "leases") {
				continue
			}
			if len(rule.ResourceNames) == 0 && !slices.Equal(rule.Verbs, []string{"create"}) {
				problems = append(problems, fmt.Sprintf("Role/%s: %q of any lease", r.Name, rule.Verbs))
			}
			have = append(have, rule.ResourceNames...)
		}
	}
	slices.Sort(want)
	slices.Sort(have)
	if !slices.Equal(want, have) {
		problems = append(problems, fmt.Sprintf("leases %q may be written, the sidecars use %q", have, want))
	}
	return problems
}

// checkVolumes: mounts and volumes lead to each other.
func checkVolumes(s *set) (problems []string) {
	for _, w := range s.workloads() {
		add := func(format string, args ...any) {
			problems = append(problems, fmt.Sprintf("%s: ", w)+fmt.Sprintf(format, args...))
		}
		mounted := map[string]bool{}
		exists := func(name string) bool {
			return slices.ContainsFunc(w.pod.Volumes, func(v corev1.Volume) bool { return v.Name == name })
		}
		for _, c := range w.containers() {
			at := map[string]bool{}
			for _, m := range c.VolumeMounts {
				mounted[m.Name] = true
				if !exists(m.Name) {
					add("container %s mounts volume %s, which does not exist", c.Name, m.Name)
				}
				if !path.IsAbs(m.MountPath) || at[m.MountPath] {
					add("container %s: mount path %s is relative or there twice", c.Name, m.MountPath)
				}
				at[m.MountPath] = true
			}
			for _, d := range c.VolumeDevices {
				mounted[d.Name] = true
				if !exists(d.Name) {
					add("container %s uses volume %s, which does not exist", c.Name, d.Name)
				}
			}
			for _, e := range c.EnvFrom {
				if e.ConfigMapRef != nil && !s.has("ConfigMap", e.ConfigMapRef.Name) {
					add("config map %s does not exist", e.ConfigMapRef.Name)
				}
			}
		}
		for _, v := range w.pod.Volumes {
			if !mounted[v.Name] {
				add("nobody mounts volume %s", v.Name)
			}
			if v.ConfigMap != nil && !s.has("ConfigMap", v.ConfigMap.Name) {
				add("config map %s does not exist", v.ConfigMap.Name)
			}
			if v.Secret != nil {
				add("volume %s: there are no secrets", v.Name)
			}
			if v.PersistentVolumeClaim != nil && !s.has("PersistentVolumeClaim", v.PersistentVolumeClaim.ClaimName) {
				add("claim %s does not exist", v.PersistentVolumeClaim.ClaimName)
			}
		}
	}
	return problems
}

// checkClaims: claims and snapshots name classes and sources that exist, and ask for
// what can be given.
func checkClaims(s *set) (problems []string) {
	claims := map[string]*corev1.PersistentVolumeClaim{}
	for _, c := range all[*corev1.PersistentVolumeClaim](s) {
		claims[c.Name] = c
	}
	snapshots := map[string]*snapshotv1.VolumeSnapshot{}
	for _, v := range all[*snapshotv1.VolumeSnapshot](s) {
		snapshots[v.Name] = v
		add := func(what string) { problems = append(problems, fmt.Sprintf("VolumeSnapshot/%s: %s", v.Name, what)) }
		if v.Spec.VolumeSnapshotClassName == nil || !s.has("VolumeSnapshotClass", *v.Spec.VolumeSnapshotClassName) {
			add("its class does not exist")
		}
		if source := v.Spec.Source.PersistentVolumeClaimName; source == nil || claims[*source] == nil {
			add("its source does not exist")
		}
	}
	for _, c := range claims {
		add := func(what string) {
			problems = append(problems, fmt.Sprintf("PersistentVolumeClaim/%s: %s", c.Name, what))
		}
		if c.Spec.StorageClassName == nil || !s.has("StorageClass", *c.Spec.StorageClassName) {
			add("its storage class does not exist")
		}
		source := c.Spec.DataSource
		if source == nil {
			continue
		}
		var from *corev1.PersistentVolumeClaim
		switch group := source.APIGroup; {
		case source.Kind == "PersistentVolumeClaim" && group == nil:
			from = claims[source.Name]
		case source.Kind == "VolumeSnapshot" && group != nil && *group == snapshotv1.GroupName:
			if v := snapshots[source.Name]; v != nil && v.Spec.Source.PersistentVolumeClaimName != nil {
				from = claims[*v.Spec.Source.PersistentVolumeClaimName]
			}
		}
		if from == nil {
			add("its source does not exist")
			continue
		}
		mode := func(c *corev1.PersistentVolumeClaim) string {
			if c.Spec.VolumeMode == nil {
				return string(corev1.PersistentVolumeFilesystem)
			}
			return string(*c.Spec.VolumeMode)
		}
		if c.Spec.Resources.Requests.Storage().Cmp(*from.Spec.Resources.Requests.Storage()) < 0 {
			add("it is smaller than its source")
		}
		if mode(c) != mode(from) {
			add("its source has another volume mode")
		}
	}
	return problems
}

// checkDriverName: one name everywhere, the one that the driver answers with.
func checkDriverName(s *set) (problems []string) {
	want := s.facts.driver
	is := func(where, got string) {
		if got != want {
			problems = append(problems, fmt.Sprintf("%s: %q, the driver is %q", where, got, want))
		}
	}
	drivers := all[*storagev1.CSIDriver](s)
	if len(drivers) != 1 {
		problems = append(problems, fmt.Sprintf("%d CSIDriver objects", len(drivers)))
	}
	for _, d := range drivers {
		is("CSIDriver", d.Name)
	}
	for _, c := range all[*storagev1.StorageClass](s) {
		is("StorageClass/"+c.Name, c.Provisioner)
	}
	for _, c := range all[*snapshotv1.VolumeSnapshotClass](s) {
		is("VolumeSnapshotClass/"+c.Name, c.Driver)
	}
	for _, w := range s.workloads() {
		for _, v := range w.pod.Volumes {
			if v.HostPath != nil && path.Dir(v.HostPath.Path) == plugins {
				is(w.String()+" volume "+v.Name, path.Base(v.HostPath.Path))
			}
		}
		for _, c := range w.containers() {
			if p := flags(c)["kubelet-endpoint"]; p != "" {
				is(w.String()+" --kubelet-endpoint", path.Base(path.Dir(p)))
			}
		}
	}
	return problems
}

// checkParameters: classes have parameters and values that the driver takes.
func checkParameters(s *set) (problems []string) {
	for _, c := range all[*storagev1.StorageClass](s) {
		for key, value := range c.Parameters {
			values, known := s.facts.parameters[key]
			switch {
			case !known:
				problems = append(problems, fmt.Sprintf("StorageClass/%s: parameter %s is not known", c.Name, key))
			case !slices.Contains(values, value):
				problems = append(problems, fmt.Sprintf("StorageClass/%s: parameter %s: %q is not one of %q", c.Name, key, value, values))
			}
		}
	}
	for _, c := range all[*snapshotv1.VolumeSnapshotClass](s) {
		if len(c.Parameters) > 0 {
			problems = append(problems, fmt.Sprintf("VolumeSnapshotClass/%s: the driver takes no parameters", c.Name))
		}
	}
	return problems
}

// checkGranaryFlags: granary serve has the flags that it is given.
func checkGranaryFlags(s *set) (problems []string) {
	for _, w := range s.workloads() {
		for _, c := range w.containers() {
			if !isDriver(w, c) {
				continue
			}
			if len(c.Args) == 0 || c.Args[0] != "serve" || len(flags(c)) != len(c.Args)-1 {
				problems = append(problems, fmt.Sprintf("%s: arguments %q: want serve and --flags, each once", c.Name, c.Args))
			}
			for flag := range flags(c) {
				if !s.facts.serveFlags[flag] {
					problems = append(problems, fmt.Sprintf("granary serve has no --%s", flag))
				}
			}
		}
	}
	return problems
}

// checkSidecarFlags: the sidecars have the flags and feature gates that they are given.
func checkSidecarFlags(s *set) (problems []string) {
	sidecarsOf(s, func(w workload, c corev1.Container, name string) {
		upstream := s.facts.sidecars[name]
		if upstream == nil {
			problems = append(problems, fmt.Sprintf("%s: image %s is not in this test's tables", w, c.Image))
			return
		}
		if len(flags(c)) != len(c.Args) {
			problems = append(problems, fmt.Sprintf("%s: arguments %q: want --flags, each once", c.Name, c.Args))
		}
		for flag, value := range flags(c) {
			if !upstream.flags[flag] {
				problems = append(problems, fmt.Sprintf("%s has no --%s", name, flag))
			}
			if flag == "feature-gates" {
				for gate := range strings.SplitSeq(value, ",") {
					if gate, _, _ := strings.Cut(gate, "="); !upstream.gates[gate] {
						problems = append(problems, fmt.Sprintf("%s has no feature gate %s", name, gate))
					}
				}
			}
		}
	})
	return problems
}

// checkEnvironment: $(NAMES) in arguments are defined, and sidecars have what they read.
func checkEnvironment(s *set) (problems []string) {
	for _, w := range s.workloads() {
		for _, c := range w.containers() {
			defined := map[string]string{}
			for _, e := range c.Env {
				defined[e.Name] = e.Value
				if e.ValueFrom != nil && e.ValueFrom.FieldRef != nil {
					defined[e.Name] = e.ValueFrom.FieldRef.FieldPath
				}
			}
			needs := map[string]string{} // name -> field, "" for any
			for _, m := range regexp.MustCompile(`\$\((\w+)\)`).FindAllStringSubmatch(strings.Join(c.Args, " "), -1) {
				needs[m[1]] = ""
			}
			if isDriver(w, c) {
				needs["NODE_NAME"] = "spec.nodeName"
			}
			given := flags(c)
			if given["node-deployment"] != "" {
				needs["NODE_NAME"] = "spec.nodeName"
			}
			if given["enable-capacity"] != "" {
				needs["NAMESPACE"], needs["POD_NAME"] = "metadata.namespace", "metadata.name"
			}
			for name, field := range needs {
				if value, ok := defined[name]; !ok || field != "" && value != field {
					problems = append(problems, fmt.Sprintf("%s: container %s: %s is %q, not %q", w, c.Name, name, value, field))
				}
			}
		}
	}
	return problems
}

// checkElection: sidecars are elected, or one per node, never both or neither.
func checkElection(s *set) (problems []string) {
	sidecarsOf(s, func(w workload, c corev1.Container, name string) {
		given := flags(c)
		elected, perNode := given["leader-election"] == "true", given["node-deployment"] == "true"
		if elected == perNode || perNode != (w.kind == "DaemonSet") {
			problems = append(problems, fmt.Sprintf("%s: %s: elected %v, per node %v", w, c.Name, elected, perNode))
		}
		if name == "csi-provisioner" && given["capacity-ownerref-level"] != "1" {
			problems = append(problems, "provisioner: a pod's owner, the DaemonSet, is at level 1")
		}
		if name == "csi-attacher" {
			if every, err := time.ParseDuration(given["reconcile-sync"]); err != nil || every < time.Hour {
				problems = append(problems, fmt.Sprintf("attacher: --reconcile-sync=%s would publish volumes of other nodes again all the time", given["reconcile-sync"]))
			}
		}
	})
	return problems
}

// checkPorts: probes and HTTP endpoints meet ports that exist, each once per pod.
func checkPorts(s *set) (problems []string) {
	for _, w := range s.workloads() {
		add := func(format string, args ...any) {
			problems = append(problems, fmt.Sprintf("%s: ", w)+fmt.Sprintf(format, args...))
		}
		numbers := map[int32]bool{}
		for _, c := range w.containers() {
			ports := map[string]int32{}
			for _, p := range c.Ports {
				if numbers[p.ContainerPort] {
					add("port %d twice", p.ContainerPort)
				}
				numbers[p.ContainerPort] = true
				ports[p.Name] = p.ContainerPort
				for _, e := range validation.IsValidPortName(p.Name) {
					add("port %q: %s", p.Name, e)
				}
			}
			if endpoint := flags(c)["http-endpoint"]; endpoint != "" {
				_, number, _ := strings.Cut(endpoint, ":")
				n, err := strconv.ParseInt(number, 10, 32)
				if err != nil || !slices.Contains(slices.Collect(maps.Values(ports)), int32(n)) {
					add("container %s: --http-endpoint=%s is none of its ports %v", c.Name, endpoint, ports)
				}
			}
			for _, p := range []*corev1.Probe{c.StartupProbe, c.LivenessProbe, c.ReadinessProbe} {
				if p == nil || p.HTTPGet == nil {
					continue
				}
				if port := p.HTTPGet.Port; port.Type != intstr.String || ports[port.StrVal] == 0 {
					add("container %s: a probe asks port %s, which it does not have", c.Name, port.String())
				}
			}
			if isDriver(w, c) {
				for what, p := range map[string]*corev1.Probe{"startup": c.StartupProbe, "liveness": c.LivenessProbe, "readiness": c.ReadinessProbe} {
					if p == nil || p.HTTPGet == nil || p.HTTPGet.Path != "/healthz" {
						add("the driver has no %s probe of /healthz", what)
					}
				}
			}
		}
	}
	return problems
}

// checkConfinement: the restricted Pod Security Standard for every container but the
// driver's, with one exception for sidecars: they are root, as the owner of the socket,
// and so the standard's ban on hostPath and SELinux types does not hold for them either.
func checkConfinement(s *set) (problems []string) {
	for _, w := range s.workloads() {
		add := func(format string, args ...any) {
			problems = append(problems, fmt.Sprintf("%s: ", w)+fmt.Sprintf(format, args...))
		}
		if w.pod.HostNetwork || w.pod.HostPID || w.pod.HostIPC || w.pod.ShareProcessNamespace != nil && *w.pod.ShareProcessNamespace {
			add("shares namespaces")
		}
		pod := w.pod.SecurityContext
		if pod == nil {
			pod = &corev1.PodSecurityContext{}
		}
		if w.sample {
			for _, v := range w.pod.Volumes {
				if v.PersistentVolumeClaim == nil {
					add("volume %s: an example needs claims only", v.Name)
				}
			}
		}
		for _, c := range w.containers() {
			for _, p := range c.Ports {
				if p.HostPort != 0 {
					add("container %s: host port %d", c.Name, p.HostPort)
				}
			}
			context := c.SecurityContext
			if context == nil {
				context = &corev1.SecurityContext{}
			}
			if isDriver(w, c) {
				if context.Privileged == nil || !*context.Privileged {
					add("container %s has to be privileged: it mounts for the host", c.Name)
				}
				continue
			}
			want := func(ok bool, what string) {
				if !ok {
					add("container %s: %s", c.Name, what)
				}
			}
			no := func(b *bool) bool { return b != nil && !*b }
			yes := func(b *bool) bool { return b != nil && *b }
			want(context.Privileged == nil || !*context.Privileged, "privileged")
			want(no(context.AllowPrivilegeEscalation), "allowPrivilegeEscalation is not false")
			want(context.Capabilities != nil && slices.Contains(context.Capabilities.Drop, "ALL") && len(context.Capabilities.Add) == 0,
				"does not drop all capabilities, or adds some")
			seccomp := context.SeccompProfile
			if seccomp == nil {
				seccomp = pod.SeccompProfile
			}
			want(seccomp != nil && seccomp.Type == corev1.SeccompProfileTypeRuntimeDefault, "seccomp profile is not RuntimeDefault")
			want(context.ProcMount == nil, "procMount")
			if w.sample {
				want(len(c.VolumeDevices) > 0 || yes(context.RunAsNonRoot) || yes(pod.RunAsNonRoot), "runAsNonRoot is not true")
				want(context.SELinuxOptions == nil && pod.SELinuxOptions == nil, "SELinux options")
				continue
			}
			want(yes(context.ReadOnlyRootFilesystem), "readOnlyRootFilesystem is not true")
			want(context.RunAsUser != nil && *context.RunAsUser == 0, "not root: the socket's mode is 0600")
			want(context.SELinuxOptions != nil && context.SELinuxOptions.Type == "spc_t", "may not connect to the socket where SELinux enforces")
			for _, m := range c.VolumeMounts {
				want(m.Name == "socket" && m.ReadOnly, "mounts "+m.Name+", or writable: a sidecar needs the socket, read-only")
			}
		}
	}
	return problems
}

const plugins = "/var/lib/kubelet/plugins"

// hostPaths are the paths that workloads may mount, and of which type.
var hostPaths = map[string]map[string]corev1.HostPathType{
	"DaemonSet/granary-node": {
		plugins + "/granary.csi.k8ns.io":    corev1.HostPathDirectoryOrCreate,
		"/var/lib/kubelet/plugins_registry": corev1.HostPathDirectory,
		"/var/lib/kubelet":                  corev1.HostPathDirectory,
		"/dev":                              corev1.HostPathDirectory,
		"/var/lib/granary":                  corev1.HostPathDirectoryOrCreate,
		"/sys/fs":                           corev1.HostPathDirectory,
		"/etc/selinux":                      corev1.HostPathDirectoryOrCreate,
	},
	"Deployment/granary-controller": {
		plugins + "/granary.csi.k8ns.io": corev1.HostPathDirectoryOrCreate,
	},
}

// checkHostPaths: no more and no less of the host than listed. An unset type is no way
// out for a path that may be missing: runtimes make it, or fail where they cannot.
func checkHostPaths(s *set) (problems []string) {
	for _, w := range s.workloads() {
		have := map[string]corev1.HostPathType{}
		for _, v := range w.pod.Volumes {
			if v.HostPath != nil {
				have[v.HostPath.Path] = ""
				if v.HostPath.Type != nil {
					have[v.HostPath.Path] = *v.HostPath.Type
				}
			}
		}
		if !maps.Equal(have, hostPaths[w.String()]) {
			problems = append(problems, fmt.Sprintf("%s: host paths %v, allowed are %v", w, have, hostPaths[w.String()]))
		}
	}
	return problems
}

// checkWiring: the daemon's paths lie where the host and the sidecars look for them.
func checkWiring(s *set) (problems []string) {
	add := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	socket := "" // on the host
	for _, w := range s.workloads() {
		for _, c := range w.containers() {
			if !isDriver(w, c) {
				continue
			}
			given := flags(c)
			endpoint, ok := strings.CutPrefix(given["endpoint"], "unix://")
			if !ok {
				add("--endpoint=%s is not unix://", given["endpoint"])
			}
			socket = onHost(w, c, endpoint)
			if socket != given["kubelet-endpoint"] {
				add("--endpoint is %q on the host, --kubelet-endpoint says %q", socket, given["kubelet-endpoint"])
			}
			if at := onHost(w, c, given["registration-dir"]); at != "/var/lib/kubelet/plugins_registry" {
				add("--registration-dir is %q on the host: kubelet looks elsewhere", at)
			}
			if at := onHost(w, c, given["data-dir"]); at != "/var/lib/granary" {
				add("--data-dir is %q on the host", at)
			}
			if given["node-id"] != "$(NODE_NAME)" {
				add("--node-id=%s: it has to be the node's name", given["node-id"])
			}
			for p, propagation := range map[string]corev1.MountPropagationMode{
				"/var/lib/kubelet": corev1.MountPropagationBidirectional, "/dev": "", "/sys/fs": "", "/etc/selinux": "",
			} {
				i := slices.IndexFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return m.MountPath == p })
				if i < 0 || onHost(w, c, p) != p {
					add("the host's %s is not at %s", p, p)
					continue
				}
				m := c.VolumeMounts[i]
				if got := m.MountPropagation; got == nil && propagation != "" || got != nil && *got != propagation {
					add("%s: mount propagation is not %q", p, propagation)
				}
				if m.ReadOnly != (p == "/etc/selinux") {
					add("%s: readOnly is %v: selinuxfs counts only if it is writable", p, m.ReadOnly)
				}
			}
			if strings.HasPrefix(c.TerminationMessagePath, "/dev/") || c.TerminationMessagePath == "" {
				add("terminationMessagePath %q lies in the host's /dev", c.TerminationMessagePath)
			}
		}
	}
	sidecarsOf(s, func(w workload, c corev1.Container, _ string) {
		if at := onHost(w, c, flags(c)["csi-address"]); at == "" || at != socket {
			add("%s: --csi-address is %q on the host, the driver's socket is %q", c.Name, at, socket)
		}
	})
	return problems
}

// onHost translates a path in a container; "" if it is not on the host.
func onHost(w workload, c corev1.Container, p string) string {
	best, host := "", ""
	for _, m := range c.VolumeMounts {
		rest, ok := strings.CutPrefix(p, m.MountPath)
		if !ok || rest != "" && rest[0] != '/' || len(m.MountPath) <= len(best) {
			continue
		}
		for _, v := range w.pod.Volumes {
			if v.Name == m.Name && v.HostPath != nil {
				best, host = m.MountPath, v.HostPath.Path+rest
			}
		}
	}
	return host
}

// checkLifetime: what keeps volumes from going down by surprise.
func checkLifetime(s *set) (problems []string) {
	add := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	for _, w := range s.workloads() {
		daemon, ok := w.typed.(*appsv1.DaemonSet)
		if !ok {
			continue
		}
		if daemon.Spec.UpdateStrategy.Type != appsv1.OnDeleteDaemonSetStrategyType {
			add("%s: a rolling update takes mounted volumes down", w)
		}
		if w.pod.PriorityClassName != "system-node-critical" {
			add("%s: may be evicted before its users", w)
		}
		everywhere := slices.ContainsFunc(w.pod.Tolerations, func(t corev1.Toleration) bool {
			return t.Operator == corev1.TolerationOpExists && t.Key == "" && t.Effect == "" && t.TolerationSeconds == nil
		})
		if !everywhere {
			add("%s: a taint takes it off a node with volumes", w)
		}
		need := s.facts.grace + 10*time.Second
		if g := w.pod.TerminationGracePeriodSeconds; g == nil || time.Duration(*g)*time.Second < need {
			add("%s: terminationGracePeriodSeconds: granary serve may take %v to stop", w, need)
		}
		for _, c := range w.containers() {
			if !isDriver(w, c) {
				continue
			}
			if len(c.Resources.Limits) > 0 {
				add("%s: reaching a limit takes volumes down", c.Name)
			}
			if c.Resources.Requests.Memory().IsZero() || c.Resources.Requests.Cpu().IsZero() {
				add("%s: requests nothing", c.Name)
			}
			if p := c.LivenessProbe; p == nil || p.PeriodSeconds*p.FailureThreshold < 300 {
				add("%s: killed after less than five minutes of silence", c.Name)
			}
			if p := c.StartupProbe; p == nil || p.PeriodSeconds*p.FailureThreshold < 600 {
				add("%s: killed while it recovers", c.Name)
			}
		}
	}
	for _, d := range all[*appsv1.Deployment](s) {
		budgets := slices.ContainsFunc(all[*policyv1.PodDisruptionBudget](s), func(b *policyv1.PodDisruptionBudget) bool {
			return b.Spec.MaxUnavailable != nil && b.Spec.MaxUnavailable.IntValue() == 1
		})
		if d.Spec.Replicas == nil || *d.Spec.Replicas < 2 || !budgets {
			add("Deployment/%s: one drain stops attaching", d.Name)
		}
	}
	return problems
}
