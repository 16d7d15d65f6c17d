package deploy

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"sigs.k8s.io/yaml"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
)

// schemas are the OpenAPI documents of Kubernetes and the snapshot CRDs. Strict decoding
// does not know which fields are required.
type schemas struct {
	kubernetes string                    // folder of the documents, a file per group and version
	documents  map[string]map[string]any // by file, read when needed
	crds       map[string]map[string]any // by kind
}

func newSchemas() (*schemas, error) {
	dir, err := download(kubernetes)
	if err != nil {
		return nil, err
	}
	s := &schemas{
		kubernetes: filepath.Join(dir, "api", "openapi-spec", "v3"),
		documents:  map[string]map[string]any{},
		crds:       map[string]map[string]any{},
	}
	client, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/kubernetes-csi/external-snapshotter/client/v8").Output()
	if err != nil {
		return nil, fmt.Errorf("find the snapshot CRDs: %w", err)
	}
	files, err := filepath.Glob(filepath.Join(strings.TrimSpace(string(client)), "config", "crd", "snapshot.*.yaml"))
	if err != nil || len(files) == 0 {
		return nil, fmt.Errorf("no snapshot CRDs in %s: %w", client, err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		var crd struct {
			Spec struct {
				Names    struct{ Kind string }
				Versions []struct {
					Name   string
					Schema struct{ OpenAPIV3Schema map[string]any }
				}
			}
		}
		if err := yaml.Unmarshal(text, &crd); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		for _, v := range crd.Spec.Versions {
			if v.Name == "v1" {
				s.crds[crd.Spec.Names.Kind] = v.Schema.OpenAPIV3Schema
			}
		}
	}
	return s, nil
}

// find gives the schema of a kind, and the document that its references lead into.
func (s *schemas) find(apiVersion, kind string) (schema, document map[string]any, err error) {
	if strings.HasPrefix(apiVersion, "snapshot.storage.k8s.io/") {
		if schema = s.crds[kind]; schema == nil {
			return nil, nil, fmt.Errorf("no schema of %s %s", apiVersion, kind)
		}
		return schema, nil, nil
	}
	file := "apis__" + strings.ReplaceAll(apiVersion, "/", "__") + "_openapi.json"
	if !strings.Contains(apiVersion, "/") {
		file = "api__" + apiVersion + "_openapi.json"
	}
	if s.documents[file] == nil {
		text, err := os.ReadFile(filepath.Join(s.kubernetes, file))
		if err != nil {
			return nil, nil, err
		}
		var document map[string]any
		if err := json.Unmarshal(text, &document); err != nil {
			return nil, nil, fmt.Errorf("%s: %w", file, err)
		}
		s.documents[file] = document
	}
	document = s.documents[file]
	found, _ := dig(document, "components", "schemas").(map[string]any)
	for name, candidate := range found {
		gvks, _ := dig(candidate, "x-kubernetes-group-version-kind").([]any)
		for _, gvk := range gvks {
			if dig(gvk, "kind") == kind && strings.HasSuffix(name, "."+kind) {
				return candidate.(map[string]any), document, nil
			}
		}
	}
	return nil, nil, fmt.Errorf("no schema of %s %s", apiVersion, kind)
}

// checkSchema holds every object against its schema.
func checkSchema(s *set) (problems []string) {
	for _, o := range s.objects {
		apiVersion, _ := o.raw["apiVersion"].(string)
		schema, document, err := s.facts.schemas.find(apiVersion, o.kind)
		if err != nil {
			problems = append(problems, err.Error())
			continue
		}
		for _, p := range validate(document, schema, o.raw, o.String()) {
			problems = append(problems, p)
		}
	}
	return problems
}

// validate is as much of OpenAPI as these documents use.
func validate(document, schema map[string]any, value any, at string) (problems []string) {
	if ref, ok := schema["$ref"].(string); ok {
		target, ok := dig(document, strings.Split(strings.TrimPrefix(ref, "#/"), "/")...).(map[string]any)
		if !ok {
			return []string{at + ": the schema refers to nothing: " + ref}
		}
		return validate(document, target, value, at)
	}
	parts, _ := schema["allOf"].([]any)
	for _, part := range parts {
		problems = append(problems, validate(document, part.(map[string]any), value, at)...)
	}
	if either, ok := schema["oneOf"].([]any); ok {
		fits := slices.ContainsFunc(either, func(part any) bool {
			return len(validate(document, part.(map[string]any), value, at)) == 0
		})
		if !fits {
			problems = append(problems, fmt.Sprintf("%s: %v is of none of the types allowed", at, value))
		}
	}
	if wrong := wrongType(schema, value); wrong != "" {
		return append(problems, at+": "+wrong)
	}
	if enum, ok := schema["enum"].([]any); ok && !slices.Contains(enum, value) {
		problems = append(problems, fmt.Sprintf("%s: %v is not one of %v", at, value, enum))
	}
	switch value := value.(type) {
	case map[string]any:
		required, _ := schema["required"].([]any)
		for _, key := range required {
			if _, ok := value[key.(string)]; !ok {
				problems = append(problems, fmt.Sprintf("%s: %s is required", at, key))
			}
		}
		properties, _ := schema["properties"].(map[string]any)
		others, open := schema["additionalProperties"].(map[string]any)
		for key, field := range value {
			switch property, ok := properties[key].(map[string]any); {
			case ok:
				problems = append(problems, validate(document, property, field, at+"."+key)...)
			case open:
				problems = append(problems, validate(document, others, field, at+"."+key)...)
			case properties != nil:
				problems = append(problems, fmt.Sprintf("%s: %s is not known", at, key))
			}
		}
	case []any:
		items, _ := schema["items"].(map[string]any)
		for i, item := range value {
			problems = append(problems, validate(document, items, item, fmt.Sprintf("%s[%d]", at, i))...)
		}
	}
	return problems
}

func wrongType(schema map[string]any, value any) string {
	want, _ := schema["type"].(string)
	if schema["x-kubernetes-int-or-string"] == true {
		want = ""
	}
	got := "null"
	switch v := value.(type) {
	case map[string]any:
		got = "object"
	case []any:
		got = "array"
	case string:
		got = "string"
	case bool:
		got = "boolean"
	case float64:
		got = "number"
		if v == float64(int64(v)) && want == "integer" {
			got = "integer"
		}
	}
	if want == "" || want == got {
		return ""
	}
	return fmt.Sprintf("%s instead of %s", got, want)
}

// enums are the values of string types. The published schemas do not list them.
var enums = map[reflect.Type][]string{}

// free are string types without a fixed list of values.
var free = map[reflect.Type]bool{
	reflect.TypeFor[string]():              true,
	reflect.TypeFor[corev1.ResourceName](): true,
	reflect.TypeFor[corev1.Capability]():   true,
}

func enum[T ~string](values ...T) {
	for _, v := range values {
		enums[reflect.TypeFor[T]()] = append(enums[reflect.TypeFor[T]()], string(v))
	}
}

func init() {
	enum(corev1.HostPathDirectory, corev1.HostPathDirectoryOrCreate, corev1.HostPathFile, corev1.HostPathFileOrCreate,
		corev1.HostPathSocket, corev1.HostPathCharDev, corev1.HostPathBlockDev)
	enum(corev1.MountPropagationNone, corev1.MountPropagationHostToContainer, corev1.MountPropagationBidirectional)
	enum(corev1.PullAlways, corev1.PullIfNotPresent, corev1.PullNever)
	enum(corev1.RestartPolicyAlways, corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever)
	enum(corev1.TerminationMessageReadFile, corev1.TerminationMessageFallbackToLogsOnError)
	enum(corev1.TolerationOpExists, corev1.TolerationOpEqual)
	enum(corev1.TaintEffectNoSchedule, corev1.TaintEffectPreferNoSchedule, corev1.TaintEffectNoExecute)
	enum(corev1.SeccompProfileTypeRuntimeDefault, corev1.SeccompProfileTypeLocalhost, corev1.SeccompProfileTypeUnconfined)
	enum(corev1.DoNotSchedule, corev1.ScheduleAnyway)
	enum(corev1.ReadWriteOnce, corev1.ReadOnlyMany, corev1.ReadWriteMany, corev1.ReadWriteOncePod)
	enum(corev1.PersistentVolumeBlock, corev1.PersistentVolumeFilesystem)
	enum(corev1.PersistentVolumeReclaimDelete, corev1.PersistentVolumeReclaimRetain)
	enum(corev1.URISchemeHTTP, corev1.URISchemeHTTPS)
	enum(corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP)
	enum(corev1.DNSClusterFirst, corev1.DNSClusterFirstWithHostNet, corev1.DNSDefault, corev1.DNSNone)
	enum(appsv1.OnDeleteDaemonSetStrategyType, appsv1.RollingUpdateDaemonSetStrategyType)
	enum(appsv1.RecreateDeploymentStrategyType, appsv1.RollingUpdateDeploymentStrategyType)
	enum(policyv1.IfHealthyBudget, policyv1.AlwaysAllow)
	enum(storagev1.VolumeBindingImmediate, storagev1.VolumeBindingWaitForFirstConsumer)
	enum(storagev1.FileFSGroupPolicy, storagev1.NoneFSGroupPolicy, storagev1.ReadWriteOnceWithFSTypeFSGroupPolicy)
	enum(storagev1.VolumeLifecyclePersistent, storagev1.VolumeLifecycleEphemeral)
	enum(snapshotv1.VolumeSnapshotContentDelete, snapshotv1.VolumeSnapshotContentRetain)
}

// checkEnums looks at every value of a string type. A type that this test does not know
// is a problem too, so that no value goes unchecked.
func checkEnums(s *set) (problems []string) {
	for _, o := range s.objects {
		walkEnums(reflect.ValueOf(o.typed), o.String(), &problems)
	}
	return problems
}

func walkEnums(v reflect.Value, at string, problems *[]string) {
	if v.Type() == reflect.TypeFor[resource.Quantity]() {
		return // its parts say how it was written
	}
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		if !v.IsNil() {
			walkEnums(v.Elem(), at, problems)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				walkEnums(v.Field(i), at+"."+v.Type().Field(i).Name, problems)
			}
		}
	case reflect.Slice:
		for i := range v.Len() {
			walkEnums(v.Index(i), fmt.Sprintf("%s[%d]", at, i), problems)
		}
	case reflect.Map:
		for _, key := range v.MapKeys() {
			walkEnums(v.MapIndex(key), at+"."+key.String(), problems)
		}
	case reflect.String:
		values, known := enums[v.Type()]
		switch {
		case v.String() == "" || free[v.Type()]:
		case !known:
			*problems = append(*problems, fmt.Sprintf("%s: type %s is not in this test's table", at, v.Type()))
		case !slices.Contains(values, v.String()):
			*problems = append(*problems, fmt.Sprintf("%s: %q is not one of %q", at, v, values))
		}
	}
}
