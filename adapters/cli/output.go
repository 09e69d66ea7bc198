package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"gopkg.in/yaml.v3"
)

// listing is one answer in every form it can be shown.
type listing struct {
	value any      // as JSON and YAML show it
	names []string // as -o name shows it: "volume/web/disk1"
	head  []column
	rows  [][]string
}

type column struct {
	name string
	wide bool // shown with -o wide only
}

// show writes an answer in a form.
func show(w io.Writer, form string, l listing, colour bool) error {
	switch form {
	case "json":
		return writeJSON(w, l.value)
	case "yaml":
		return writeYAML(w, l.value)
	case "name":
		for _, n := range l.names {
			if _, err := fmt.Fprintln(w, n); err != nil {
				return err
			}
		}
		return nil
	}
	return table(w, l, form == "wide", colour)
}

func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// writeYAML shows the JSON form as YAML, in the same order and with the same names.
func writeYAML(w io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	var node yaml.Node
	if err := yaml.Unmarshal(b, &node); err != nil {
		return err
	}
	plainStyle(&node)
	var out bytes.Buffer
	e := yaml.NewEncoder(&out)
	e.SetIndent(2)
	if err := e.Encode(&node); err != nil {
		return err
	}
	_, err = w.Write(out.Bytes())
	return err
}

// plainStyle drops JSON's braces and quotes; the encoder quotes again what needs it.
func plainStyle(n *yaml.Node) {
	if n.Kind != yaml.ScalarNode && len(n.Content) > 0 || n.Kind == yaml.ScalarNode {
		n.Style = 0
	}
	for _, c := range n.Content {
		plainStyle(c)
	}
}

// table writes aligned columns. It counts runes itself, because a colour has no width.
func table(w io.Writer, l listing, wide, colour bool) error {
	var shown []int
	for i, c := range l.head {
		if wide || !c.wide {
			shown = append(shown, i)
		}
	}
	widths := make([]int, len(l.head))
	for _, i := range shown {
		widths[i] = len(l.head[i].name)
		for _, r := range l.rows {
			widths[i] = max(widths[i], utf8.RuneCountInString(r[i]))
		}
	}
	var out strings.Builder
	line := func(cell func(int) string, paint func(string) string) {
		for n, i := range shown {
			text := cell(i)
			pad := widths[i] - utf8.RuneCountInString(text)
			out.WriteString(paint(text))
			if n < len(shown)-1 {
				out.WriteString(strings.Repeat(" ", pad+2))
			}
		}
		out.WriteByte('\n')
	}
	line(func(i int) string { return l.head[i].name }, func(s string) string { return s })
	for _, r := range l.rows {
		line(func(i int) string { return r[i] }, func(s string) string { return painted(s, colour) })
	}
	_, err := io.WriteString(w, out.String())
	return err
}

// painted gives the words of a state their colour.
func painted(s string, colour bool) string {
	if !colour {
		return s
	}
	switch s {
	case "online", "ok", "compliant", "finished":
		return "\x1b[32m" + s + "\x1b[0m"
	case "placing", "converging", "deleting", "running":
		return "\x1b[33m" + s + "\x1b[0m"
	case "offline", "failed", "violated", "degraded":
		return "\x1b[31m" + s + "\x1b[0m"
	}
	return s
}
