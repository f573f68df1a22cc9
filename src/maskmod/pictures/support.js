function rest(a,b){return a-b*Math.floor(a/b)}
function wrap(i,n){return i<0?i+n:i}
function clip(i,n){return i<0?(i+n<0?0:i+n):i>=n?n-1:i}
function bytesOf(text){const s=atob(text),a=new Uint8Array(s.length);for(let i=0;i<s.length;i++)a[i]=s.charCodeAt(i);return a}
function decoded(t){
  const kinds={i8:Int8Array,i16:Int16Array,i32:Int32Array,f64:Float64Array}
  if(t.kind.startsWith("runs ")){
    const a=new kinds[t.kind.slice(5)](t.n);let at=0
    for(let r=0;r<t.data.length;r+=3)for(let j=0;j<t.data[r+2];j++)a[at++]=t.data[r]+j*t.data[r+1]
    return a
  }
  const raw=bytesOf(t.data)
  if(t.kind==="bits"){const a=new Uint8Array(t.n);for(let i=0;i<t.n;i++)a[i]=raw[i>>3]>>(i&7)&1;return a}
  return new kinds[t.kind](raw.buffer)
}
