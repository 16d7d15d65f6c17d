package deploy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"testing"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	kjson "k8s.io/apimachinery/pkg/runtime/serializer/json"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
)

const manifests = "../../deploy/kubernetes"

// scheme knows the kinds that manifests may use. Another kind fails to decode: add its
// package here, and its namespacing to namespaced.
var scheme = func() *runtime.Scheme {
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		corev1.AddToScheme, appsv1.AddToScheme, policyv1.AddToScheme, rbacv1.AddToScheme,
		storagev1.AddToScheme, snapshotv1.AddToScheme,
	} {
		if err := add(s); err != nil {
			panic(err)
		}
	}
	return s
}()

// namespaced tells which kinds live in a namespace.
var namespaced = map[string]bool{
	"Namespace": false, "CSIDriver": false, "StorageClass": false, "VolumeSnapshotClass": false,
	"ClusterRole": false, "ClusterRoleBinding": false,
	"ServiceAccount": true, "Role": true, "RoleBinding": true, "DaemonSet": true, "Deployment": true,
	"PodDisruptionBudget": true, "PersistentVolumeClaim": true, "Pod": true, "VolumeSnapshot": true,
}

// decode turns YAML or JSON into a typed object; unknown and duplicate fields are errors.
func decode(text []byte) (runtime.Object, error) {
	s := kjson.NewSerializerWithOptions(kjson.DefaultMetaFactory, scheme, scheme, kjson.SerializerOptions{Yaml: true, Strict: true})
	object, _, err := s.Decode(text, nil, nil)
	return object, err
}

// object is one object of a build.
type object struct {
	raw    map[string]any
	typed  runtime.Object
	meta   metav1.Object
	kind   string
	sample bool // of examples/: a user's, in a namespace of the user's choice
}

func (o *object) String() string { return o.kind + "/" + o.meta.GetName() }

// set is what somebody applies together.
type set struct {
	objects []*object
	facts   *facts
}

// rawObject is an object before decoding.
type rawObject struct {
	fields map[string]any
	sample bool
}

// build runs kustomize on a directory below the manifests.
func build(t *testing.T, dir string) []rawObject {
	t.Helper()
	resources, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), manifests+"/"+dir)
	if err != nil {
		t.Fatalf("kustomize build %s: %v", dir, err)
	}
	var all []rawObject
	for _, r := range resources.Resources() {
		fields, err := r.Map()
		if err != nil {
			t.Fatal(err)
		}
		// Through JSON, so that mutations and comparisons meet one kind of number.
		all = append(all, rawObject{roundTrip(t, fields), dir == "examples"})
	}
	if len(all) == 0 {
		t.Fatalf("kustomize build %s: nothing comes out", dir)
	}
	return all
}

func roundTrip(t *testing.T, fields map[string]any) map[string]any {
	t.Helper()
	text, err := json.Marshal(fields)
	if err != nil {
		t.Fatal(err)
	}
	var out map[string]any
	if err := json.Unmarshal(text, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

// newSet decodes objects strictly.
func newSet(raws []rawObject, f *facts) (*set, error) {
	s := &set{facts: f}
	seen := map[string]bool{}
	for _, raw := range raws {
		text, err := json.Marshal(raw.fields)
		if err != nil {
			return nil, err
		}
		typed, err := decode(bytes.TrimSpace(text))
		if err != nil {
			return nil, fmt.Errorf("%v/%v: %w", raw.fields["kind"], dig(raw.fields, "metadata", "name"), err)
		}
		meta, ok := typed.(metav1.Object)
		if !ok {
			return nil, fmt.Errorf("%T has no metadata", typed)
		}
		kind, _ := raw.fields["kind"].(string)
		o := &object{raw.fields, typed, meta, kind, raw.sample}
		if seen[o.String()] {
			return nil, fmt.Errorf("%s: twice", o)
		}
		seen[o.String()] = true
		s.objects = append(s.objects, o)
	}
	return s, nil
}

// all lists the objects of one type.
func all[T runtime.Object](s *set) []T {
	var out []T
	for _, o := range s.objects {
		if typed, ok := o.typed.(T); ok {
			out = append(out, typed)
		}
	}
	return out
}

// has tells whether an object of that kind and name is there.
func (s *set) has(kind, name string) bool {
	for _, o := range s.objects {
		if o.kind == kind && o.meta.GetName() == name {
			return true
		}
	}
	return false
}

// workload is something with pods.
type workload struct {
	*object
	selector *metav1.LabelSelector // nil for a pod
	labels   map[string]string     // of its pods
	pod      *corev1.PodSpec
}

func (s *set) workloads() []workload {
	var out []workload
	for _, o := range s.objects {
		switch w := o.typed.(type) {
		case *appsv1.DaemonSet:
			out = append(out, workload{o, w.Spec.Selector, w.Spec.Template.Labels, &w.Spec.Template.Spec})
		case *appsv1.Deployment:
			out = append(out, workload{o, w.Spec.Selector, w.Spec.Template.Labels, &w.Spec.Template.Spec})
		case *corev1.Pod:
			out = append(out, workload{o, nil, w.Labels, &w.Spec})
		}
	}
	return out
}

// containers lists init containers too.
func (w workload) containers() []corev1.Container {
	return append(append([]corev1.Container(nil), w.pod.InitContainers...), w.pod.Containers...)
}

// dig reads a field of decoded JSON; nil if it is not there.
func dig(value any, path ...string) any {
	for _, key := range path {
		m, ok := value.(map[string]any)
		if !ok {
			return nil
		}
		value = m[key]
	}
	return value
}
