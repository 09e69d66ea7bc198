package cli

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"

	"weft/adapters/client"
	"weft/domain"
	"weft/domain/intent"
)

// Limits of a manifest.
const (
	manifestMax  = 1 << 20
	documentsMax = 1000
)

// object is one document of a manifest, checked.
type object struct {
	template *client.TemplateBody
	app      *client.AppBody
}

func (o object) ref() string {
	if o.template != nil {
		return "template/" + o.template.Name
	}
	return "app/" + o.app.Name
}

// templateDoc is `kind: Template`.
type templateDoc struct {
	Kind        string         `yaml:"kind"`
	Name        string         `yaml:"name"`
	Description string         `yaml:"description"`
	Intent      *client.Intent `yaml:"intent"`
}

// appDoc is `kind: App`.
type appDoc struct {
	Kind     string         `yaml:"kind"`
	Name     string         `yaml:"name"`
	Template string         `yaml:"template"`
	Intent   *client.Intent `yaml:"intent"`
	Volumes  []volumeDoc    `yaml:"volumes"`
	Export   *client.Export `yaml:"export"`
}

type volumeDoc struct {
	Name         string `yaml:"name"`
	Size         size   `yaml:"size"`
	LogicalBlock int64  `yaml:"logical_block"`
	Source       string `yaml:"source"`
}

// size reads "10GiB" as well as a number of bytes.
type size domain.Bytes

// UnmarshalYAML implements yaml.Unmarshaler.
func (s *size) UnmarshalYAML(n *yaml.Node) error {
	*s = size(domain.VolumeMin) // a fault in the text is one violation, not two
	b, err := domain.ParseBytes(n.Value)
	if err != nil || n.Kind != yaml.ScalarNode {
		return &yaml.TypeError{Errors: []string{fmt.Sprintf(
			"line %d: %q is not a size; write for example 10GiB", n.Line, n.Value,
		)}}
	}
	*s = size(b)
	return nil
}

// readManifest reads every document of a manifest, YAML or JSON, and checks all of it by the rules
// of the domain before anything is sent: a manifest with a fault changes nothing. The error lists
// every violation.
func readManifest(r io.Reader) ([]object, error) {
	b, err := io.ReadAll(io.LimitReader(r, manifestMax+1))
	if err != nil {
		return nil, &domain.Error{Kind: domain.Unavailable, Msg: "reading the manifest", Err: err}
	}
	if len(b) > manifestMax {
		return nil, domain.Errorf(domain.TooLarge, "the manifest is over %s", domain.Bytes(manifestMax))
	}
	m := &manifest{}
	d := yaml.NewDecoder(bytes.NewReader(b))
	for n := 1; ; n++ {
		var node yaml.Node
		err := d.Decode(&node)
		if errors.Is(err, io.EOF) {
			break
		}
		if n > documentsMax {
			return nil, domain.Errorf(domain.TooLarge, "the manifest holds over %d documents", documentsMax)
		}
		at := fmt.Sprintf("document %d", n)
		if err != nil {
			m.add(at, err.Error()) // no document begins where this one ends: the rest cannot be read
			break
		}
		if len(node.Content) > 0 && node.Content[0].Tag != "!!null" {
			m.document(at, &node)
		}
	}
	if len(m.found) > 0 {
		return nil, &domain.Error{
			Kind: domain.Invalid, Msg: "the manifest is not valid; nothing was changed",
			Violations: m.found,
		}
	}
	if len(m.objects) == 0 {
		return nil, domain.Errorf(domain.Invalid, "the manifest holds no object")
	}
	// Templates first: applications name them.
	slices.SortStableFunc(m.objects, func(a, b object) int {
		switch {
		case a.template != nil && b.template == nil:
			return -1
		case a.template == nil && b.template != nil:
			return 1
		}
		return 0
	})
	return m.objects, nil
}

// manifest gathers objects and everything that is wrong.
type manifest struct {
	objects []object
	found   []domain.Violation
}

func (m *manifest) add(path, reason string) {
	m.found = append(m.found, domain.Violation{Path: path, Reason: reason})
}

// document decodes and checks one document.
func (m *manifest) document(at string, node *yaml.Node) {
	var head struct {
		Kind string `yaml:"kind"`
	}
	if err := node.Decode(&head); err != nil {
		m.yamlErrors(at, err)
		return
	}
	var o object
	switch head.Kind {
	case "Template":
		var d templateDoc
		m.strict(at, node, &d)
		o.template = &client.TemplateBody{Name: d.Name, Description: d.Description, Intent: d.Intent}
		m.check(at, intent.CreateTemplate{
			Name: d.Name, Description: d.Description, Intent: domainIntent(d.Intent),
		})
	case "App":
		var d appDoc
		m.strict(at, node, &d)
		o.app = d.body()
		m.check(at, d.command())
	case "":
		m.add(at+": kind", "is missing: Template or App")
		return
	default:
		m.add(at+": kind", fmt.Sprintf("%q is neither Template nor App", head.Kind))
		return
	}
	for _, x := range m.objects {
		if x.ref() == o.ref() {
			m.add(at+": name", o.ref()+" stands in this manifest twice")
		}
	}
	m.objects = append(m.objects, o)
}

// body is the application as the API takes it.
func (d appDoc) body() *client.AppBody {
	b := &client.AppBody{Name: d.Name, Template: d.Template, Intent: d.Intent, Export: d.Export}
	for _, v := range d.Volumes {
		b.Volumes = append(b.Volumes, client.VolumeBody{
			Name: v.Name, Size: domain.Bytes(v.Size), LogicalBlock: v.LogicalBlock, Source: v.Source,
		})
	}
	return b
}

// command is the application as the domain judges it.
func (d appDoc) command() domain.Validator {
	ev := intent.AppInstanceCreated{
		Name: d.Name, Overrides: domainIntent(d.Intent), Export: intent.Export{NBD: true, AllowAny: true},
	}
	if d.Export != nil {
		ev.Export = intent.Export(*d.Export)
	}
	for _, v := range d.Volumes {
		if v.Source != "" && v.Size == 0 {
			v.Size = size(domain.VolumeMin) // the node takes its source's
		}
		ev.Volumes = append(ev.Volumes, intent.VolumeSpec{
			Name: v.Name, Size: domain.Bytes(v.Size), LogicalBlock: v.LogicalBlock,
		})
	}
	return intent.CreateApp{AppInstanceCreated: ev}
}

// strict decodes a document and notes every field that is unknown or of the wrong type. yaml.v3's
// own strictness works on text alone, and this document has been read already.
func (m *manifest) strict(at string, node *yaml.Node, into any) {
	m.unknown(at, node.Content[0], reflect.TypeOf(into))
	if err := node.Decode(into); err != nil {
		m.yamlErrors(at, err)
	}
}

// unknown notes the fields that a type does not have.
func (m *manifest) unknown(at string, node *yaml.Node, t reflect.Type) {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch {
	case node.Kind == yaml.AliasNode: // the types end, so a cycle of aliases does too
		m.unknown(at, node.Alias, t)
	case node.Kind == yaml.SequenceNode && t.Kind() == reflect.Slice:
		for _, n := range node.Content {
			m.unknown(at, n, t.Elem())
		}
	case node.Kind == yaml.MappingNode && t.Kind() == reflect.Struct:
		fields := map[string]reflect.Type{}
		for i := range t.NumField() {
			name, _, _ := strings.Cut(t.Field(i).Tag.Get("yaml"), ",")
			fields[name] = t.Field(i).Type
		}
		for i := 0; i+1 < len(node.Content); i += 2 {
			key := node.Content[i]
			if inner, ok := fields[key.Value]; ok {
				m.unknown(at, node.Content[i+1], inner)
				continue
			}
			m.add(fmt.Sprintf("%s, line %d", at, key.Line), fmt.Sprintf("unknown field %q; known are %s",
				key.Value, strings.Join(slices.Sorted(maps.Keys(fields)), ", ")))
		}
	}
}

func (m *manifest) check(at string, v domain.Validator) {
	for _, x := range domain.ViolationsOf(v.Validate()) {
		m.add(at+": "+x.Path, x.Reason)
	}
}

// mistyped matches yaml.v3's words for a value of the wrong type.
var mistyped = regexp.MustCompile("^(line \\d+): cannot unmarshal !!(\\w+)(?: `(.*)`)? into (.*)$")

func (m *manifest) yamlErrors(at string, err error) {
	var t *yaml.TypeError
	if !errors.As(err, &t) {
		m.add(at, err.Error())
		return
	}
	for _, text := range t.Errors {
		if p := mistyped.FindStringSubmatch(text); p != nil {
			m.add(at+", "+p[1], fmt.Sprintf("%q is not %s", first(p[3], "a "+p[2]), wanted(p[4])))
		} else if line, why, ok := strings.Cut(text, ": "); ok && strings.HasPrefix(line, "line ") {
			m.add(at+", "+line, why)
		} else {
			m.add(at, text)
		}
	}
}

// wanted names a Go type for people.
func wanted(goType string) string {
	switch goType {
	case "int64":
		return "a whole number"
	case "bool":
		return "true or false"
	case "string":
		return "a text"
	}
	if len(goType) > 2 && goType[:2] == "[]" {
		return "a list"
	}
	return "a group of fields"
}
