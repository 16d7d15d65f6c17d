package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"

	"github.com/k8ns/granary/pkg/blockstore"
)

// Client calls the daemon of a data directory. Every method returns ErrNoDaemon when
// none runs there; other errors are the daemon's and match its sentinels with
// errors.Is. All methods may be called concurrently.
type Client struct {
	dataDir string
	http    *http.Client
}

// NewClient makes a client; it connects with the first call.
func NewClient(dataDir string) *Client {
	return &Client{
		dataDir: dataDir,
		http:    &http.Client{Transport: &http.Transport{DialContext: dialer(dataDir), DisableKeepAlives: true}},
	}
}

// CreateVolume makes a volume.
func (c *Client) CreateVolume(ctx context.Context, req CreateVolume) (blockstore.VolumeInfo, error) {
	return post[blockstore.VolumeInfo](ctx, c, opVolumeCreate, req)
}

// Volumes lists a page of the volumes; a zero limit is no limit, and then they are
// listed by name.
func (c *Client) Volumes(ctx context.Context, p Page) ([]blockstore.VolumeInfo, error) {
	return list(p, func(p Page) ([]blockstore.VolumeInfo, error) {
		return post[[]blockstore.VolumeInfo](ctx, c, opVolumeList, p)
	}, func(v blockstore.VolumeInfo) (id, name string) { return v.ID, v.Name })
}

// list asks for pages until it has what p wants.
func list[T any](p Page, ask func(Page) ([]T, error), names func(T) (id, name string)) ([]T, error) {
	name := func(t T) string { _, name := names(t); return name }
	all := []T{}
	for next := p; ; {
		if p.Limit > 0 {
			next.Limit = p.Limit - len(all)
		}
		some, err := ask(next)
		if err != nil {
			return nil, err
		}
		all = append(all, some...)
		if len(some) < next.limit() || len(all) == p.Limit {
			break
		}
		next.After, _ = names(some[len(some)-1])
	}
	if p.Limit == 0 {
		slices.SortFunc(all, func(a, b T) int { return strings.Compare(name(a), name(b)) })
	}
	return all, nil
}

// Volume describes a volume, by name or ID.
func (c *Client) Volume(ctx context.Context, ref string) (blockstore.VolumeInfo, error) {
	return post[blockstore.VolumeInfo](ctx, c, opVolumeShow, Target{ref})
}

// Attach makes a volume into a block device and names it. A volume that is attached
// already stays where it is.
func (c *Client) Attach(ctx context.Context, ref string) (Attached, error) {
	return post[Attached](ctx, c, opVolumeAttach, Target{ref})
}

// Detach ends a volume's block device; ErrInUse while it is mounted.
func (c *Client) Detach(ctx context.Context, ref string) error {
	_, err := post[nothing](ctx, c, opVolumeDetach, Target{ref})
	return err
}

// ResizeVolume grows a volume and its block device, not what is on it.
func (c *Client) ResizeVolume(ctx context.Context, ref string, size int64) (blockstore.VolumeInfo, error) {
	return post[blockstore.VolumeInfo](ctx, c, opVolumeResize, ResizeVolume{ref, size})
}

// SetVolume changes what a volume does on a full disk; writes that wait see it at once.
func (c *Client) SetVolume(ctx context.Context, req SetVolume) (blockstore.VolumeInfo, error) {
	return post[blockstore.VolumeInfo](ctx, c, opVolumeSet, req)
}

// DeleteVolume deletes a volume; ErrInUse while it is attached.
func (c *Client) DeleteVolume(ctx context.Context, ref string) error {
	_, err := post[nothing](ctx, c, opVolumeRemove, Target{ref})
	return err
}

// CreateSnapshot takes a snapshot. With req.Wait, created (may be nil) is called as
// soon as the snapshot exists, and the answer comes when it is ready.
func (c *Client) CreateSnapshot(ctx context.Context, req CreateSnapshot, created func(blockstore.SnapshotInfo)) (blockstore.SnapshotInfo, error) {
	return postStream[blockstore.SnapshotInfo](ctx, c, opSnapshotCreate, req, nil, created)
}

// Snapshots lists a page of the snapshots of a volume, or of all for "", as Volumes does.
func (c *Client) Snapshots(ctx context.Context, volume string, p Page) ([]blockstore.SnapshotInfo, error) {
	return list(p, func(p Page) ([]blockstore.SnapshotInfo, error) {
		return post[[]blockstore.SnapshotInfo](ctx, c, opSnapshotList, ListSnapshots{volume, p})
	}, func(s blockstore.SnapshotInfo) (id, name string) { return s.ID, s.Name })
}

// Snapshot describes a snapshot, by name or ID.
func (c *Client) Snapshot(ctx context.Context, ref string) (blockstore.SnapshotInfo, error) {
	return post[blockstore.SnapshotInfo](ctx, c, opSnapshotShow, Target{ref})
}

// DeleteSnapshot deletes a snapshot.
func (c *Client) DeleteSnapshot(ctx context.Context, ref string) error {
	_, err := post[nothing](ctx, c, opSnapshotRemove, Target{ref})
	return err
}

// Stats tells about the store, and with perVolume about every volume.
func (c *Client) Stats(ctx context.Context, perVolume bool) (Stats, error) {
	return post[Stats](ctx, c, opStats, StatsRequest{perVolume})
}

// Collect runs one collection; without wait it only starts one.
func (c *Client) Collect(ctx context.Context, wait bool) (Collected, error) {
	return postStream[Collected, nothing](ctx, c, opCollect, Collect{wait}, nil, nil)
}

// Check checks the store and calls report for every problem. The callbacks may be
// nil and are called one after the other.
func (c *Client) Check(ctx context.Context, req Check, progress func(done, total int64), report func(blockstore.Problem)) (Checked, error) {
	return postStream[Checked](ctx, c, opCheck, req, progress, report)
}

// post calls an operation with one answer.
func post[Resp any](ctx context.Context, c *Client, op string, req any) (resp Resp, err error) {
	body, err := c.send(ctx, op, req)
	if err != nil {
		return resp, err
	}
	defer body.Close()
	if err := json.NewDecoder(body).Decode(&resp); err != nil {
		return resp, c.broken(ctx, err)
	}
	return resp, nil
}

// postStream calls an operation that answers with lines.
func postStream[Resp, Item any](ctx context.Context, c *Client, op string, req any,
	onProgress func(done, total int64), onItem func(Item),
) (resp Resp, err error) {
	body, err := c.send(ctx, op, req)
	if err != nil {
		return resp, err
	}
	defer body.Close()
	d := json.NewDecoder(body)
	for {
		var line struct {
			event[Resp]
			Item *Item `json:"item"`
		}
		if err := d.Decode(&line); err != nil {
			return resp, c.broken(ctx, err)
		}
		switch {
		case line.Error != nil:
			return resp, decodeError(*line.Error)
		case line.Result != nil:
			return *line.Result, nil
		case line.Progress != nil && onProgress != nil:
			onProgress(line.Progress.Done, line.Progress.Total)
		case line.Item != nil && onItem != nil:
			onItem(*line.Item)
		}
	}
}

// send posts a request and returns the body of a good answer.
func (c *Client) send(ctx context.Context, op string, req any) (io.ReadCloser, error) {
	raw, err := json.Marshal(req)
	if err != nil {
		return nil, err
	}
	hr, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://granary/v1/"+op, bytes.NewReader(raw))
	if err != nil {
		return nil, err
	}
	hr.Header.Set("Content-Type", "application/json")
	r, err := c.http.Do(hr)
	if err != nil {
		// The URL that http puts before the text means nothing to a person.
		if inner := errors.Unwrap(err); inner != nil {
			err = inner
		}
		return nil, err
	}
	if r.StatusCode == http.StatusOK {
		return r.Body, nil
	}
	defer r.Body.Close()
	var failed event[nothing]
	if err := json.NewDecoder(io.LimitReader(r.Body, 1<<20)).Decode(&failed); err != nil || failed.Error == nil {
		return nil, fmt.Errorf("the daemon on %s answered %s to %s: is it another version?", c.dataDir, r.Status, op)
	}
	return nil, decodeError(*failed.Error)
}

// broken explains an answer that ended before its end.
func (c *Client) broken(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("the daemon on %s went away before it had answered", c.dataDir)
	}
	return fmt.Errorf("answer of the daemon on %s: %w", c.dataDir, err)
}
