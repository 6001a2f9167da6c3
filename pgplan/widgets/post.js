// The post: what many widgets change at once comes in one message, and is handed out here.
//
// `first` is drawn in the next frame; `then` once that frame is painted. Both hold the new state of widgets by
// their model's id.

// A page that nobody sees draws no frames.
const FRAME_MS = 100;

/** Give widgets their new state, as if each had got a message of its own. */
async function hand(letters, manager) {
  for (const [id, state] of Object.entries(letters)) {
    if (!manager.has_model(id)) continue;
    const model = await manager.get_model(id);
    model.set_state(await model.constructor._deserialize_state(state, manager));
  }
}

/** Call `act` once what has changed by now is painted. */
function afterFrame(act) {
  const timer = setTimeout(act, FRAME_MS);
  requestAnimationFrame(() => {
    clearTimeout(timer);
    setTimeout(act);
  });
}

export default {
  initialize({ model }) {
    const manager = model.widget_manager;
    let waiting = {};
    const handOut = () => {
      const letters = waiting;
      waiting = {};
      hand(letters, manager);
    };
    const receive = ({ first, then }) => {
      hand(first, manager);
      if (!Object.keys(waiting).length) afterFrame(handOut);
      for (const [id, state] of Object.entries(then)) waiting[id] = { ...waiting[id], ...state };
    };
    model.on("msg:custom", receive);
    model.set("is_running", true);
    model.save_changes();
    return () => model.off("msg:custom", receive);
  },
};
