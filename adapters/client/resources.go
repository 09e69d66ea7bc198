package client

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"weft/domain"
)

// get makes a reading.
func get[T any](ctx context.Context, c *Client, path string, q url.Values) (Reply[T], error) {
	return call[T](ctx, c, request{method: "GET", path: path, query: q})
}

// change makes a change.
func change[T any](ctx context.Context, c *Client, method, path string, body any, ch Change) (
	Reply[T], error,
) {
	return call[T](ctx, c, request{
		method: method, path: path, query: ch.query(), body: body, change: &ch,
	})
}

// seg makes one path element of a name, whatever is in it.
func seg(name string) string {
	if name == "" || name == "." || name == ".." {
		return "-" // no object bears this name; an empty element would name the list
	}
	return url.PathEscape(name)
}

// Health asks whether the node is well. It needs no token.
func (c *Client) Health(ctx context.Context) (Reply[Health], error) {
	return get[Health](ctx, c, "/v1/health", nil)
}

// Templates lists the templates of a tenant.
func (c *Client) Templates(ctx context.Context, at At) (Reply[List[Template]], error) {
	return get[List[Template]](ctx, c, "/v1/templates", at.query())
}

// Template gives one template by name or id.
func (c *Client) Template(ctx context.Context, name string, at At) (Reply[Template], error) {
	return get[Template](ctx, c, "/v1/templates/"+seg(name), at.query())
}

// CreateTemplate makes a template; Exists if the name is taken.
func (c *Client) CreateTemplate(ctx context.Context, b TemplateBody, ch Change) (
	Reply[Template], error,
) {
	return change[Template](ctx, c, "POST", "/v1/templates", b, ch)
}

// ApplyTemplate makes a template, or publishes a version of it if the intent differs.
func (c *Client) ApplyTemplate(ctx context.Context, b TemplateBody, ch Change) (
	Reply[Template], error,
) {
	return change[Template](ctx, c, "PUT", "/v1/templates/"+seg(b.Name), b, ch)
}

// DeleteTemplate deletes a template that nobody uses; Conflict otherwise.
func (c *Client) DeleteTemplate(ctx context.Context, name string, ch Change) (Reply[Gone], error) {
	return change[Gone](ctx, c, "DELETE", "/v1/templates/"+seg(name), nil, ch)
}

// Apps lists the application instances of a tenant.
func (c *Client) Apps(ctx context.Context, at At) (Reply[List[App]], error) {
	return get[List[App]](ctx, c, "/v1/apps", at.query())
}

// App gives one application instance by name or id.
func (c *Client) App(ctx context.Context, name string, at At) (Reply[App], error) {
	return get[App](ctx, c, "/v1/apps/"+seg(name), at.query())
}

// CreateApp makes an application instance; Exists if the name is taken.
func (c *Client) CreateApp(ctx context.Context, b AppBody, ch Change) (Reply[App], error) {
	return change[App](ctx, c, "POST", "/v1/apps", b, ch)
}

// ApplyApp makes an application instance, or brings it to the form asked for. It deletes nothing.
func (c *Client) ApplyApp(ctx context.Context, b AppBody, ch Change) (Reply[App], error) {
	return change[App](ctx, c, "PUT", "/v1/apps/"+seg(b.Name), b, ch)
}

// DeleteApp deletes an application instance with all its data. Gone waits for the end.
func (c *Client) DeleteApp(ctx context.Context, name string, ch Change) (Reply[Gone], error) {
	return change[Gone](ctx, c, "DELETE", "/v1/apps/"+seg(name), nil, ch)
}

// AddVolume adds a volume to an application instance.
func (c *Client) AddVolume(ctx context.Context, app string, b VolumeBody, ch Change) (
	Reply[App], error,
) {
	return change[App](ctx, c, "POST", "/v1/apps/"+seg(app)+"/volumes", b, ch)
}

// Resizing is a volume's new size, and whether it may be smaller than the present one, also while
// hosts use the volume.
type Resizing struct {
	Size   domain.Bytes `json:"size"`
	Shrink bool         `json:"shrink,omitempty"`
	Force  bool         `json:"force,omitempty"`
}

// ResizeVolume changes a volume's size.
func (c *Client) ResizeVolume(ctx context.Context, app, volume string, body Resizing,
	ch Change,
) (Reply[App], error) {
	return change[App](ctx, c, "PATCH", "/v1/apps/"+seg(app)+"/volumes/"+seg(volume), body, ch)
}

// RemoveVolume removes a volume and its data. Gone waits for the end.
func (c *Client) RemoveVolume(ctx context.Context, app, volume string, ch Change) (
	Reply[Gone], error,
) {
	return change[Gone](ctx, c, "DELETE", "/v1/apps/"+seg(app)+"/volumes/"+seg(volume), nil, ch)
}

// Volumes lists the volumes of a tenant.
func (c *Client) Volumes(ctx context.Context, at At) (Reply[List[Volume]], error) {
	return get[List[Volume]](ctx, c, "/v1/volumes", at.query())
}

// Volume gives one volume by id.
func (c *Client) Volume(ctx context.Context, id string, at At) (Reply[Volume], error) {
	return get[Volume](ctx, c, "/v1/volumes/"+seg(id), at.query())
}

// WhyVolume gives the last decision about a volume, by its id.
func (c *Client) WhyVolume(ctx context.Context, id string, at At) (Reply[Decision], error) {
	return get[Decision](ctx, c, "/v1/volumes/"+seg(id)+"/decision", at.query())
}

// Nodes lists the nodes.
func (c *Client) Nodes(ctx context.Context, at At) (Reply[List[Node]], error) {
	return get[List[Node]](ctx, c, "/v1/nodes", at.query())
}

// CreateJoinToken makes a token by which machines join. The change takes no key.
func (c *Client) CreateJoinToken(ctx context.Context, b TokenBody, ch Change) (
	Reply[JoinToken], error,
) {
	return change[JoinToken](ctx, c, "POST", "/v1/nodes/tokens", b, ch)
}

// DrainNode lets a node, by name or id, take no new volumes and give its vote up.
func (c *Client) DrainNode(ctx context.Context, name string, ch Change) (Reply[Node], error) {
	return change[Node](ctx, c, "POST", "/v1/nodes/"+seg(name)+"/drain", nil, ch)
}

// UndrainNode lets a node take part again.
func (c *Client) UndrainNode(ctx context.Context, name string, ch Change) (Reply[Node], error) {
	return change[Node](ctx, c, "POST", "/v1/nodes/"+seg(name)+"/undrain", nil, ch)
}

// SetNodeLocation says in which failure domains a node, by name or id, stands: "zone=a,rack=r1", or
// "none". Invalid for what is no location.
func (c *Client) SetNodeLocation(ctx context.Context, name, location string, ch Change) (
	Reply[Node], error,
) {
	return change[Node](ctx, c, "PUT", "/v1/nodes/"+seg(name)+"/location", LocationBody{location}, ch)
}

// RemoveNode takes a drained node without volumes out for good; Conflict otherwise.
func (c *Client) RemoveNode(ctx context.Context, name string, ch Change) (Reply[Node], error) {
	return change[Node](ctx, c, "DELETE", "/v1/nodes/"+seg(name), nil, ch)
}

// Scrubs tells how far the scrub of a node's devices has come.
func (c *Client) Scrubs(ctx context.Context, node string, at At) (Reply[List[Scrub]], error) {
	return get[List[Scrub]](ctx, c, "/v1/nodes/"+seg(node)+"/scrub", at.query())
}

// ScrubNode starts or pauses the scrub of a node's devices.
func (c *Client) ScrubNode(ctx context.Context, node string, b ScrubBody, ch Change) (
	Reply[List[Scrub]], error,
) {
	return change[List[Scrub]](ctx, c, "POST", "/v1/nodes/"+seg(node)+"/scrub", b, ch)
}

// AddDevice lets a node take a device into use. The node answers in its own time: DeviceTaken.
func (c *Client) AddDevice(ctx context.Context, node, device string, ch Change) (
	Reply[Node], error,
) {
	return change[Node](ctx, c, "POST", "/v1/nodes/"+seg(node)+"/devices",
		map[string]string{"device": device}, ch)
}

// RemoveDevice puts a device, named by its id, out of use once nothing stands on it.
func (c *Client) RemoveDevice(ctx context.Context, node, id string, ch Change) (
	Reply[Device], error,
) {
	return change[Device](ctx, c, "DELETE", "/v1/nodes/"+seg(node)+"/devices/"+seg(id), nil, ch)
}

// KeepDevice takes RemoveDevice back.
func (c *Client) KeepDevice(ctx context.Context, node, id string, ch Change) (
	Reply[Device], error,
) {
	return change[Device](ctx, c, "POST", "/v1/nodes/"+seg(node)+"/devices/"+seg(id)+"/keep", nil, ch)
}

// Devices lists the devices.
func (c *Client) Devices(ctx context.Context, at At) (Reply[List[Device]], error) {
	return get[List[Device]](ctx, c, "/v1/devices", at.query())
}

// Plans lists the last plans, the newest first.
func (c *Client) Plans(ctx context.Context, at At) (Reply[List[Plan]], error) {
	return get[List[Plan]](ctx, c, "/v1/plans", at.query())
}

// Selection selects stored events.
type Selection struct {
	Since   domain.Position // only events after it
	Types   []string        // prefixes of types; empty: all
	Streams []string        // prefixes of streams; empty: all
	Limit   int             // 0: the node's default
	Newest  bool            // backwards from the end
	At      string          // as if the log ended there: a position, or an RFC 3339 time
}

// Events lists stored events.
func (c *Client) Events(ctx context.Context, s Selection) (Reply[List[Event]], error) {
	q := url.Values{}
	if s.Since != 0 {
		q.Set("since", s.Since.String())
	}
	if len(s.Types) > 0 {
		q.Set("types", strings.Join(s.Types, ","))
	}
	if len(s.Streams) > 0 {
		q.Set("streams", strings.Join(s.Streams, ","))
	}
	if s.Limit != 0 {
		q.Set("limit", strconv.Itoa(s.Limit))
	}
	if s.Newest {
		q.Set("newest", "true")
	}
	if s.At != "" {
		q.Set("at_position", s.At)
	}
	return get[List[Event]](ctx, c, "/v1/events", q)
}

// Event gives the event at a position.
func (c *Client) Event(ctx context.Context, p domain.Position) (Reply[Event], error) {
	return get[Event](ctx, c, "/v1/events/"+p.String(), nil)
}

// Export gives the records of the log after a position as the node stores them, and behind them the
// end that the API's description draws; the caller closes it. One without the end is not whole.
func (c *Client) Export(ctx context.Context, since domain.Position) (io.ReadCloser, error) {
	q := url.Values{"since": {since.String()}}
	req, err := c.newRequest(ctx, request{method: "GET", path: "/v1/events:export", query: q}, nil)
	if err != nil {
		return nil, err
	}
	res, err := c.cfg.HTTP.Do(req)
	if err != nil {
		return nil, c.broken(ctx, err).err
	}
	if res.StatusCode == http.StatusOK {
		return res.Body, nil
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(res.Body, answerMax))
	if err != nil {
		return nil, c.broken(ctx, err).err
	}
	return nil, refused(res, body).err
}

// Replay makes the node fold every view anew, up to a position or an RFC 3339 time; empty: to the
// end of the log.
func (c *Client) Replay(ctx context.Context, to string) (Reply[Replay], error) {
	q := url.Values{}
	if to != "" {
		q.Set("to", to)
	}
	return call[Replay](ctx, c, request{
		method: "POST", path: "/v1/events:replay", query: q, slow: true,
	})
}

// Verify makes the node read its whole log again and check it.
func (c *Client) Verify(ctx context.Context) (Reply[Verdict], error) {
	return call[Verdict](ctx, c, request{method: "POST", path: "/v1/events:verify", slow: true})
}

// RepairLog makes a node read all of its copy of the log and repair what is damaged. The answer is
// what is left.
func (c *Client) RepairLog(ctx context.Context, node string) (Reply[Verdict], error) {
	return call[Verdict](ctx, c, request{
		method: "POST", path: "/v1/nodes/" + url.PathEscape(node) + "/log:repair", slow: true,
	})
}

// LogDamage lists what is damaged of the nodes' copies of the event log.
func (c *Client) LogDamage(ctx context.Context) (Reply[List[LogDamage]], error) {
	return get[List[LogDamage]](ctx, c, "/v1/log/damage", nil)
}

// Archive says how the old part of the event log is kept.
func (c *Client) Archive(ctx context.Context) (Reply[Archive], error) {
	return get[Archive](ctx, c, "/v1/log/archive", nil)
}

// Failing lists what the nodes do by themselves and cannot do now.
func (c *Client) Failing(ctx context.Context) (Reply[FailingList], error) {
	return get[FailingList](ctx, c, "/v1/failing", nil)
}

// Engine says which event log takes changes of intent.
func (c *Client) Engine(ctx context.Context) (Reply[Engine], error) {
	return get[Engine](ctx, c, "/v1/log/engine", nil)
}

// MoveEngine lets another log take changes of intent. It answers once that was recorded; Engine
// tells how far it is.
func (c *Client) MoveEngine(ctx context.Context, b EngineBody, ch Change) (Reply[Engine], error) {
	return call[Engine](ctx, c, request{
		method: "POST", path: "/v1/log/engine", query: ch.query(), body: b, change: &ch,
		slow: b.DryRun,
	})
}

// ArchiveSegments lists the sealed files of the node's archive.
func (c *Client) ArchiveSegments(ctx context.Context) (Reply[List[ArchiveSegment]], error) {
	return get[List[ArchiveSegment]](ctx, c, "/v1/log/segments", nil)
}

// Settings lists the settings of the cluster.
func (c *Client) Settings(ctx context.Context, at At) (Reply[List[Setting]], error) {
	return get[List[Setting]](ctx, c, "/v1/settings", at.query())
}

// ChangeSetting gives a setting a value; empty means its default.
func (c *Client) ChangeSetting(ctx context.Context, key, value string, ch Change) (
	Reply[Setting], error,
) {
	return change[Setting](ctx, c, "PUT", "/v1/settings/"+seg(key), map[string]string{"value": value},
		ch)
}

// PutSecret keeps a CHAP secret on the node.
func (c *Client) PutSecret(ctx context.Context, name string, b SecretBody) (Reply[Kept], error) {
	return call[Kept](ctx, c, request{
		method: "PUT", path: "/v1/secrets/" + seg(name), body: b, change: &Change{},
	})
}
